"""The participants table in the schema's words, what is refused in it, and who lands in which split."""

import hashlib
import math
from pathlib import Path

import pandas as pd
import pytest

from willis.cohort.bids import read_participants
from willis.cohort.schema import CLINICAL_COLUMNS, SPLITS
from willis.cohort.splits import split_of
from willis.cohort.table import (
    SOOP_COLUMNS,
    SOOP_IGNORED,
    CleanTable,
    check_outcomes,
    clean_table,
    for_patients,
)
from willis.errors import CohortError, TableError
from willis.params import SplitShares


def clean(folder: Path, text: str, outcome: str = "mrs_90d", **columns: str) -> CleanTable:
    """Write a table (blanks stand for tabs), read and clean it."""
    path = folder / "participants.tsv"
    path.write_text("\n".join("\t".join(line.split()) for line in text.strip().splitlines()) + "\n")
    return clean_table(read_participants(path), columns, (), outcome)  # type: ignore[arg-type]


def test_a_plain_table_becomes_one_typed_row_per_patient(tmp_path: Path) -> None:
    table = clean(
        tmp_path,
        """participant_id age sex nihss diabetes site admission_time mrs_90d
           sub-a 71.5 F 12 yes north 2025-03-01T08:00:00Z 4
           b 60 male 3 0 south 2025-03-02T09:30:00+02:00 1""",
    )
    first, second = (row for _, row in table.frame.iterrows())
    assert (first["patient_id"], first["age"], first["sex"], first["diabetes"]) == ("sub-a", 71.5, "F", 1.0)
    assert (second["patient_id"], second["sex"], second["site"]) == ("sub-b", "M", "south")
    assert second["admission_time"] == pd.Timestamp("2025-03-02T07:30:00Z")
    assert (first["mrs"], first["poor_outcome"]) == (4.0, 1.0)
    assert (second["mrs"], second["poor_outcome"]) == (1.0, 0.0)
    assert table.left_out == () and table.remarks == ()
    assert {column.name for column in CLINICAL_COLUMNS} <= set(table.frame.columns)


@pytest.mark.parametrize(("mrs", "poor"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 1)])
def test_a_rankin_score_from_three_on_is_a_poor_outcome(tmp_path: Path, mrs: int, poor: int) -> None:
    table = clean(tmp_path, f"participant_id mrs_90d\nsub-a {mrs}")
    assert table.frame["poor_outcome"].tolist() == [poor]


def test_an_unknown_column_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"'NIHS' .*perhaps NIHS: nihss.*ingest.ignored_columns"):
        clean(tmp_path, "participant_id NIHS mrs_90d\nsub-a 4 1")


def test_an_unknown_column_like_no_other_is_refused_without_a_guess(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="'zodiac' that the schema does not know") as caught:
        clean(tmp_path, "participant_id zodiac mrs_90d\nsub-a leo 1")
    assert "perhaps" not in str(caught.value)


def test_a_mapping_to_a_column_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"maps 'sugar' to 'glucose_mmol'.*did you mean 'glucose_mmol_l'\?"):
        clean(tmp_path, "participant_id sugar mrs_90d\nsub-a 6 1", sugar="glucose_mmol")


def test_two_columns_for_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="'alter' and 'age' are both age|'age' and 'alter' are both age"):
        clean(tmp_path, "participant_id alter age mrs_90d\nsub-a 60 61 1", alter="age")


def test_a_table_with_the_other_outcome_is_refused_with_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"has the outcome mrs and not mrs_90d; set outcome_column to mrs"):
        clean(tmp_path, "participant_id mrs\nsub-a 1")


def test_glucose_in_mg_per_dl_is_refused_with_the_factor(tmp_path: Path) -> None:
    rows = "\n".join(f"sub-{n} {100 + 9 * n} {n % 7}" for n in range(8))
    with pytest.raises(TableError) as caught:
        clean(tmp_path, f"participant_id glucose_mmol_l mrs_90d\n{rows}")
    message = str(caught.value)
    assert "glucose_mmol_l is 100 for sub-0, and 8 of 8 patients" in message
    assert "1.5 to 45 mmol/l" in message and "mg/dl: divide by 18.02" in message


def test_one_impossible_number_among_many_is_taken_as_missing_with_a_remark(tmp_path: Path) -> None:
    rows = "\n".join(f"sub-{n} {'450' if n == 3 else '6.5'} {n % 7}" for n in range(20))
    table = clean(tmp_path, f"participant_id glucose_mmol_l mrs_90d\n{rows}")
    assert math.isnan(table.frame["glucose_mmol_l"][3]) and len(table.frame) == 20
    ((patient, remark),) = table.remarks
    assert patient == "sub-3" and "glucose_mmol_l is 450" in remark and "taken as missing" in remark


@pytest.mark.parametrize("outcome", ["7", "-1", "2.5", "dead"])
def test_a_patient_with_an_outcome_that_does_not_exist_is_left_out(tmp_path: Path, outcome: str) -> None:
    rows = "\n".join(f"sub-{n} {n % 7}" for n in range(20))
    table = clean(tmp_path, f"participant_id mrs_90d\n{rows}\nsub-x {outcome}")
    (item,) = table.left_out
    assert item.patient_id == "sub-x" and outcome in item.reason and "it must be" in item.reason
    assert "sub-x" not in table.frame["patient_id"].tolist() and len(table.frame) == 20


def test_the_oldest_age_group_is_read_as_its_lower_end(tmp_path: Path) -> None:
    table = clean(tmp_path, "participant_id age mrs_90d\nsub-a 89+ 5\nsub-b 88 1")
    assert table.frame["age"].tolist() == [89.0, 88.0]


@pytest.mark.parametrize("word", ["n/a", "N/A", "NA", "nan", "null", "None"])
def test_every_word_for_missing_is_missing(tmp_path: Path, word: str) -> None:
    table = clean(
        tmp_path,
        f"participant_id age sex diabetes mrs_90d\nsub-a {word} {word} {word} {word}\nsub-b 60 F 1 2",
    )
    row = table.frame.iloc[0]
    assert row[["age", "sex", "diabetes", "mrs", "poor_outcome"]].isna().all()
    assert table.remarks == () and table.left_out == ()
    assert table.frame["has_table"].tolist() == [False, True]


def test_a_patient_without_a_row_has_no_table_and_no_outcome(tmp_path: Path) -> None:
    table = clean(tmp_path, "participant_id age mrs_90d\nsub-a 60 2\nsub-b 70 3")
    frame = for_patients(table, ("sub-b", "sub-z", "sub-a"))
    assert frame["patient_id"].tolist() == ["sub-b", "sub-z", "sub-a"]
    assert frame["has_table"].tolist() == [True, False, True]
    assert math.isnan(frame["mrs"][1]) and math.isnan(frame["age"][1]) and frame["sex"][1] is None


def test_a_cohort_in_which_nobody_has_an_outcome_is_refused(tmp_path: Path) -> None:
    table = clean(tmp_path, "participant_id age mrs_90d\nsub-a 60 n/a\nsub-b 70 n/a")
    with pytest.raises(CohortError, match=r"none of 2 patients has mrs_90d.*require_outcome"):
        check_outcomes(table.frame, "mrs_90d")


@pytest.mark.parametrize(("scores", "rule"), [("0 1 2", "< 3"), ("3 5 6", ">= 3")])
def test_a_cohort_of_one_class_is_refused_with_the_class(tmp_path: Path, scores: str, rule: str) -> None:
    rows = "\n".join(f"sub-{n} {score}" for n, score in enumerate(scores.split()))
    table = clean(tmp_path, f"participant_id mrs_90d\n{rows}\nsub-x n/a")
    with pytest.raises(CohortError, match=rf"all 3 patients with an outcome have mrs_90d {rule}"):
        check_outcomes(table.frame, "mrs_90d")


def test_equal_rows_count_once_and_contradicting_rows_leave_the_patient_out(tmp_path: Path) -> None:
    table = clean(
        tmp_path,
        """participant_id age mrs_90d
           sub-a 60 1
           sub-a 60 1
           sub-b 70 2
           sub-b 71 2
           sub-c 80 5""",
    )
    assert table.frame["patient_id"].tolist() == ["sub-a", "sub-c"]
    (item,) = table.left_out
    assert item.patient_id == "sub-b" and "2 rows of participants.tsv contradict each other" in item.reason


def test_a_sex_or_flag_in_unknown_words_is_taken_as_missing_with_the_choices(tmp_path: Path) -> None:
    rows = "\n".join(f"sub-{n} F 1 {n % 7}" for n in range(20))
    table = clean(tmp_path, f"participant_id sex diabetes mrs_90d\n{rows}\nsub-x ? perhaps 1")
    said = dict.fromkeys(patient for patient, _ in table.remarks)
    text = " ".join(remark for _, remark in table.remarks)
    assert list(said) == ["sub-x"] and "sex is '?'" in text and "diabetes is 'perhaps'; it must be 0" in text


def test_the_columns_of_soop_map_onto_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    columns = "participant_id sex age race acuteischaemicstroke priorstroke bmi nihss gs_rankin_6isdeath"
    values = "sub-9 M 89+ white 1 0 27.5 14 6"
    path.write_text("".join("\t".join(line.split()) + "\n" for line in (columns, values)))
    table = clean_table(read_participants(path), SOOP_COLUMNS, SOOP_IGNORED, "mrs")
    row = table.frame.iloc[0]
    assert (row["age"], row["prior_stroke"], row["nihss"], row["mrs"]) == (89.0, 0.0, 14.0, 6.0)


def place_of(patient: str) -> float:
    """Where SHA-256 puts an id on [0, 1), by the hexadecimal digest."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:16], 16) / 16**16


def test_a_split_is_the_piece_of_the_unit_interval_that_the_hash_falls_in() -> None:
    shares = SplitShares(train=0.5, validation=0.2, calibration=0.1, test=0.2)
    edges = {"train": 0.5, "validation": 0.7, "calibration": 0.8, "test": 1.0}
    for number in range(500):
        patient = f"sub-{number:04d}"
        expected = next(name for name, edge in edges.items() if place_of(patient) < edge)
        assert split_of(patient, shares) == expected


def test_more_for_test_moves_nobody_from_train_and_nobody_from_test_to_elsewhere() -> None:
    before = SplitShares(train=0.6, validation=0.12, calibration=0.1, test=0.18)
    after = SplitShares(train=0.6, validation=0.10, calibration=0.1, test=0.20)
    for patient in (f"sub-{number}" for number in range(1000)):
        one, two = split_of(patient, before), split_of(patient, after)
        assert (one == "train") == (two == "train")
        assert one != "test" or two == "test"


def test_the_splits_have_about_their_shares() -> None:
    shares = SplitShares()
    found = [split_of(f"sub-{number:05d}", shares) for number in range(20_000)]
    for name in SPLITS:
        # 4 standard deviations of a binomial share over 20,000 patients are at most 1.4 %
        assert found.count(name) / 20_000 == pytest.approx(getattr(shares, name), abs=0.014)


def test_a_split_without_a_share_gets_nobody() -> None:
    shares = SplitShares(train=0.0, validation=0.0, calibration=0.0, test=1.0)
    assert {split_of(f"sub-{number}", shares) for number in range(200)} == {"test"}
