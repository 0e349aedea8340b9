import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from willis.cohort.bids import read_participants
from willis.cohort.splits import split_of
from willis.cohort.table import (
    SOOP_COLUMNS,
    SOOP_IGNORED,
    UNDATED,
    CleanTable,
    check_outcomes,
    clean_table,
    for_patients,
)
from willis.errors import CohortError, TableError
from willis.params import SplitShares


def table(
    folder: Path, outcome: Any = "mrs_90d", columns: Any = None, ignored: Any = (), **cells: list[Any]
) -> CleanTable:
    rows = len(next(iter(cells.values())))
    ids = {"participant_id": [f"sub-{i:02d}" for i in range(1, rows + 1)]}
    path = folder / "participants.tsv"
    pd.DataFrame(ids | cells).to_csv(path, sep="\t", index=False)
    return clean_table(read_participants(path), columns or {}, ignored, outcome)


def test_an_unknown_column_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"'nihs'.*perhaps nihs: nihss.*ignored_columns"):
        table(tmp_path, nihs=["3"])


def test_a_mapping_to_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"maps 'x' to 'nihhs'.*did you mean 'nihss'"):
        table(tmp_path, columns={"x": "nihhs"}, x=["3"])


def test_two_columns_for_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"'age' and 'years' are both age"):
        table(tmp_path, columns={"years": "age"}, age=["60"], years=["61"])


def test_glucose_in_mg_dl_is_refused_with_the_hint(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"glucose_mmol_l is 126 for sub-01.*divide by 18.02"):
        table(tmp_path, glucose_mmol_l=["126", "98", "210", "5.5"])


def test_one_implausible_value_is_taken_as_missing_with_a_remark(tmp_path: Path) -> None:
    clean = table(tmp_path, bmi=["115.56"] + ["25"] * 9, age=["70"] * 10)
    assert clean.left_out == ()
    assert clean.remarks == (("sub-01", "bmi is 115.56; it must be 10 to 80 kg/m^2: taken as missing"),)
    assert pd.isna(clean.frame["bmi"][0]) and clean.frame["age"][0] == 70


@pytest.mark.parametrize("value", ["7", "-1", "2.5", "dead"])
def test_an_impossible_outcome_leaves_its_patient_out(tmp_path: Path, value: str) -> None:
    clean = table(tmp_path, mrs_90d=[value] + ["2"] * 9)
    (left_out,) = clean.left_out
    assert left_out.patient_id == "sub-01" and left_out.reason.startswith("mrs is ")
    assert value in left_out.reason and "(participants.tsv): correct it, or write n/a" in left_out.reason
    assert clean.frame["patient_id"].tolist() == [f"sub-{i:02d}" for i in range(2, 11)]


def test_a_column_of_impossible_outcomes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"3 of 4 patients break the rule; it must be 0 to 6"):
        table(tmp_path, mrs_90d=["12", "20", "9", "3"])


def test_ages_written_89_plus_are_read_as_89(tmp_path: Path) -> None:
    assert table(tmp_path, age=["89+"]).frame["age"].tolist() == [89]


def test_missing_values_are_normal(tmp_path: Path) -> None:
    clean = table(tmp_path, age=["n/a", ""], nihss=["3", "n/a"])
    assert clean.frame["age"].isna().all() and clean.frame["has_table"].tolist() == [True, False]
    assert clean.left_out == () and clean.remarks == ()


def test_every_spelling_of_sex_and_flags_is_understood(tmp_path: Path) -> None:
    clean = table(tmp_path, sex=["M", "f", "male", "Female"], diabetes=["1", "0.0", "yes", "False"])
    assert clean.frame["sex"].tolist() == ["M", "F", "M", "F"]
    assert clean.frame["diabetes"].tolist() == [1, 0, 1, 0]


def test_contradicting_rows_of_a_patient_leave_the_patient_out(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tage\nsub-01\t60\nsub-01\t61\nsub-02\t70\nsub-02\t70\n")
    clean = clean_table(read_participants(path), {}, (), "mrs_90d")
    assert clean.frame["patient_id"].tolist() == ["sub-02"]
    assert "contradict" in clean.left_out[0].reason


def test_an_outcome_at_another_time_is_never_taken_for_90_days(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"has the outcome mrs and not mrs_90d; set outcome_column to mrs"):
        table(tmp_path, mrs=["3"])


def test_nobody_with_an_outcome_and_one_class_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="none of 2 patients has mrs_90d"):
        check_outcomes(table(tmp_path, age=["60", "70"]).frame, "mrs_90d")
    with pytest.raises(CohortError, match="all 2 patients with an outcome have mrs_90d < 3"):
        check_outcomes(table(tmp_path, mrs_90d=["2", "0"]).frame, "mrs_90d")


def test_a_patient_without_a_row_has_no_table(tmp_path: Path) -> None:
    frame = for_patients(table(tmp_path, age=["60"], sex=["F"]), ("sub-09", "sub-01"))
    assert frame["patient_id"].tolist() == ["sub-09", "sub-01"]
    assert frame["has_table"].tolist() == [False, True] and frame["sex"].tolist() == [None, "F"]


def test_times_are_utc_and_a_patient_without_dates_gets_the_documented_one(tmp_path: Path) -> None:
    clean = table(tmp_path, scan_time=["2024-05-01T13:30:00+02:00", "n/a"], age=["60", "61"])
    frame = for_patients(clean, ("sub-01", "sub-02"))
    assert str(frame["scan_time"][0]) == "2024-05-01 11:30:00+00:00"
    assert frame["admission_time"][0] == frame["scan_time"][0]
    assert frame["scan_time"][1] == pd.Timestamp(UNDATED)


def test_the_table_of_soop_is_read_whole(data_dir: Path) -> None:
    source = read_participants(data_dir / "soop" / "participants.tsv")
    clean = clean_table(source, SOOP_COLUMNS, SOOP_IGNORED, "mrs")
    assert len(clean.frame) == len(source.frame) and clean.left_out == ()
    assert len(clean.remarks) == 3
    assert clean.frame["nihss"].notna().sum() == 988


def test_a_split_is_decided_by_the_hash_of_the_id_alone() -> None:
    shares = SplitShares()
    for patient in ("sub-0001", "sub-77", "sub-strokecase0009"):
        place = int(hashlib.sha256(patient.encode()).hexdigest()[:16], 16) / 2**64
        edges = {"train": 0.60, "validation": 0.72, "calibration": 0.82, "test": 1.0}
        assert split_of(patient, shares) == next(name for name, edge in edges.items() if place < edge)


def test_the_shares_of_the_splits_are_kept_over_many_patients() -> None:
    splits = pd.Series([split_of(f"sub-{i}", SplitShares()) for i in range(20000)]).value_counts(
        normalize=True
    )
    assert splits.to_dict() == pytest.approx(
        {"train": 0.6, "validation": 0.12, "calibration": 0.1, "test": 0.18}, abs=0.01
    )
