"""The reader of BIDS trees against the shapes that the public sets have (names only; no volume is opened)."""

from pathlib import Path

import pytest

from willis.cohort.bids import read_cohort, read_participants
from willis.errors import CohortError, TableError


def grow(root: Path, *names: str) -> Path:
    """Make empty files of these names below a root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def names_of(root: Path) -> dict[str, str]:
    """sequence -> path below the root, of the only study."""
    (study,) = read_cohort(root).studies
    return {sequence: str(path.relative_to(root)) for sequence, path in study.volumes()}


def test_the_whole_soop_set_is_read_trace_first(tmp_path: Path) -> None:
    masks = "derivatives/lesion_masks/sub-7/dwi/sub-7_space-TRACE_desc-"
    grow(
        tmp_path,
        "sub-7/dwi/sub-7_rec-TRACE_dwi.nii.gz",
        "sub-7/dwi/sub-7_rec-TRACE_dwi.json",
        "sub-7/dwi/sub-7_rec-ADC_dwi.nii.gz",
        "sub-7/dwi/sub-7_dwi.nii.gz",
        "sub-7/anat/sub-7_FLAIR.nii.gz",
        "sub-7/anat/sub-7_T1w.nii.gz",
        f"{masks}lesionChronic_mask.nii.gz",
        f"{masks}lesionAcute_mask.nii.gz",
        f"{masks}lesion_mask.nii.gz",
    )
    assert names_of(tmp_path) == {
        "dwi": "sub-7/dwi/sub-7_rec-TRACE_dwi.nii.gz",
        "adc": "sub-7/dwi/sub-7_rec-ADC_dwi.nii.gz",
        "flair": "sub-7/anat/sub-7_FLAIR.nii.gz",
        "lesion": f"{masks}lesion_mask.nii.gz",
    }
    study = read_cohort(tmp_path).studies[0]
    assert not study.in_standard_space
    assert [path.name for path in study.sidecars] == ["sub-7_rec-TRACE_dwi.json"]


def test_isles22_is_read_from_rawdata_with_its_mask_from_derivatives(tmp_path: Path) -> None:
    stem = "sub-strokecase0009/ses-0001/sub-strokecase0009_ses-0001"
    grow(tmp_path, *(f"rawdata/{stem}_{kind}.nii.gz" for kind in ("dwi", "adc", "flair")))
    grow(tmp_path, f"derivatives/{stem}_msk.nii.gz", f"derivatives/{stem}_snp.png")
    assert names_of(tmp_path) == {
        "dwi": f"rawdata/{stem}_dwi.nii.gz",
        "adc": f"rawdata/{stem}_adc.nii.gz",
        "flair": f"rawdata/{stem}_flair.nii.gz",
        "lesion": f"derivatives/{stem}_msk.nii.gz",
    }
    assert read_cohort(tmp_path).studies[0].study_id == "sub-strokecase0009_ses-0001"


def test_isles24_is_read_from_the_one_space_that_holds_the_mask_too(tmp_path: Path) -> None:
    raw, derived = (
        f"{kind}/sub-stroke0001/ses-02/sub-stroke0001_ses-02" for kind in ("raw_data", "derivatives")
    )
    root = tmp_path / "train"
    grow(root, f"{raw}_dwi.nii.gz", f"{raw}_adc.nii.gz")
    grow(root, *(f"{derived}_space-ncct_{kind}.nii.gz" for kind in ("dwi", "adc", "lesion-msk")))
    acute = "sub-stroke0001/ses-01/sub-stroke0001_ses-01"
    grow(root, f"raw_data/{acute}_ncct.nii.gz", f"derivatives/{acute}_space-ncct_lvo-msk.nii.gz")
    cohort = read_cohort(tmp_path)
    assert cohort.root == root
    (study,) = cohort.studies
    assert [path.name for _, path in study.volumes()] == [
        f"sub-stroke0001_ses-02_space-ncct_{kind}.nii.gz" for kind in ("dwi", "adc", "lesion-msk")
    ]
    assert not study.in_standard_space


def test_a_synthetic_cohort_is_in_standard_space_and_its_truth_is_not_looked_into(tmp_path: Path) -> None:
    grow(
        tmp_path,
        "sub-0001/dwi/sub-0001_space-MNI152NLin2009a_dwi.nii.gz",
        "derivatives/truth/sub-0001/sub-0001_space-MNI152NLin2009a_desc-lesion_mask.nii.gz",
    )
    (study,) = read_cohort(tmp_path).studies
    assert study.in_standard_space and study.lesion is None


def test_each_session_is_a_study_of_its_own(tmp_path: Path) -> None:
    for session in ("ses-1", "ses-2"):
        grow(tmp_path, f"sub-a/{session}/dwi/sub-a_{session}_dwi.nii.gz")
    cohort = read_cohort(tmp_path)
    assert [study.study_id for study in cohort.studies] == ["sub-a_ses-1", "sub-a_ses-2"]
    assert cohort.patient_ids == ("sub-a",)


def test_a_repeated_run_replaces_the_one_before(tmp_path: Path) -> None:
    grow(tmp_path, *(f"sub-a/dwi/sub-a_run-{run}_dwi.nii.gz" for run in (1, 2, 10)))
    assert names_of(tmp_path) == {"dwi": "sub-a/dwi/sub-a_run-10_dwi.nii.gz"}


@pytest.mark.parametrize("kind", ["T1w", "bold", "sbref"])
def test_a_patient_without_a_usable_sequence_is_listed(tmp_path: Path, kind: str) -> None:
    grow(tmp_path, "sub-a/dwi/sub-a_dwi.nii.gz", f"sub-b/anat/sub-b_{kind}.nii.gz")
    (item,) = read_cohort(tmp_path).left_out
    assert item.patient_id == "sub-b" and "no dwi, adc, flair" in item.reason


def test_a_link_to_outside_and_a_link_to_nothing_are_listed(tmp_path: Path) -> None:
    root = grow(tmp_path / "tree", "sub-a/dwi/sub-a_dwi.nii.gz", "sub-b/dwi/x", "sub-c/dwi/x")
    outside = grow(tmp_path, "secret.nii.gz") / "secret.nii.gz"
    (root / "sub-b/dwi/sub-b_dwi.nii.gz").symlink_to(outside)
    (root / "sub-c/dwi/sub-c_dwi.nii.gz").symlink_to(root / ".git/annex/objects/x")
    left_out = {item.patient_id: item.reason for item in read_cohort(root).left_out}
    assert "outside tree/" in left_out["sub-b"] and "git annex get" in left_out["sub-c"]
    assert read_cohort(root).patient_ids == ("sub-a",)


def test_a_file_of_one_patient_in_anothers_folder_is_listed(tmp_path: Path) -> None:
    grow(tmp_path, "sub-a/dwi/sub-a_dwi.nii.gz", "sub-b/dwi/sub-a_adc.nii.gz")
    assert "different patients" in read_cohort(tmp_path).left_out[0].reason


def test_the_same_study_in_two_places_is_listed_not_chosen_from(tmp_path: Path) -> None:
    grow(
        tmp_path, "sub-a/dwi/sub-a_dwi.nii.gz", "rawdata/sub-a/dwi/sub-a_dwi.nii.gz", "sub-b/sub-b_dwi.nii.gz"
    )
    cohort = read_cohort(tmp_path)
    assert cohort.patient_ids == ("sub-b",)
    assert "exists twice" in cohort.left_out[0].reason


@pytest.mark.parametrize("names", [[], ["readme.txt"], ["sub-a/anat/sub-a_T1w.nii.gz"]])
def test_a_tree_without_a_study_is_an_error_that_says_what_was_looked_for(
    tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(CohortError, match=r"holds no study: no sub-\*"):
        read_cohort(grow(tmp_path, *names))


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="is not a folder"):
        read_cohort(tmp_path / "nowhere")


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "participants.tsv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_table_keeps_its_words_and_knows_what_is_missing(tmp_path: Path) -> None:
    path = write_table(tmp_path, "participant_id\tage\tnihss\nsub-1\t89+\tn/a\n2\t070\t4.0\n")
    table = read_participants(path)
    assert table.frame.to_dict("records") == [
        {"participant_id": "sub-1", "age": "89+", "nihss": None},
        {"participant_id": "sub-2", "age": "070", "nihss": "4.0"},
    ]


def test_equal_rows_count_once_and_contradicting_ones_leave_the_patient_out(tmp_path: Path) -> None:
    path = write_table(tmp_path, "participant_id\tage\nsub-1\t70\nsub-1\t70\nsub-2\t60\nsub-2\t61\n")
    table = read_participants(path)
    assert list(table.frame["participant_id"]) == ["sub-1"]
    (item,) = table.left_out
    assert item.patient_id == "sub-2" and "2 rows" in item.reason


@pytest.mark.parametrize("name", ["../../etc/passwd", "sub-../x", "sub-a_b", ""])
def test_a_patient_id_that_is_no_label_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableError, match="must be sub- and letters or digits"):
        read_participants(write_table(tmp_path, f"participant_id\tage\n{name}\t70\n"))


def test_a_table_without_ids_or_in_latin_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="it must have participant_id"):
        read_participants(write_table(tmp_path, "id\tage\n1\t70\n"))
    with pytest.raises(TableError, match="not UTF-8"):
        read_participants(write_table(tmp_path, "participant_id\tname\nsub-1\tMüller\n", "latin-1"))
