"""Imports of BIDS trees and of the derived SOOP layout: whole or not at all, linked, canonical, listed."""

import os
from pathlib import Path

import pandas as pd
import pytest

from willis.cohort.bids import read_cohort
from willis.cohort.bids_import import import_bids
from willis.cohort.intake import erase_patient
from willis.cohort.soop import import_soop
from willis.errors import CohortError, StoreError, TableError


def grow(root: Path, *names: str) -> Path:
    """Make files of these names below a root, each with bytes of its own."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(64))
    return root


@pytest.fixture
def soop(tmp_path: Path) -> Path:
    """The derived SOOP layout: patient 1 complete, 2 without a row, 3 without planes, 4 a row only."""
    root = grow(
        tmp_path / "soop",
        *(f"NIfTI/bwsrsub-{number}_lesion.nii.gz" for number in (1, 2, 3)),
        *(f"PNG/rsub-{number}_lesion.nii.png" for number in (1, 2)),
        "NIfTI/ArterialAtlas136.nii.gz",
        "NIfTI/ArterialAtlas136.txt",
    )
    rows = "sub-1\t89+\t6.0\nsub-3\tn/a\tn/a\nsub-4\t61\t2.0\n"
    (root / "participants.tsv").write_text("participant_id\tage\tgs_rankin_6isdeath\n" + rows)
    return root


def test_the_derived_soop_set_becomes_a_canonical_cohort(tmp_path: Path, soop: Path) -> None:
    summary = import_soop(soop, tmp_path / "out")
    assert (summary.num_patients, summary.num_studies, summary.num_rows) == (3, 3, 3)
    assert summary.patients_without_row == ("sub-2",) and summary.rows_without_images == ("sub-4",)
    cohort = read_cohort(tmp_path / "out")
    assert cohort.source == "soop"
    one, _, three = cohort.studies
    assert one.in_standard_space and three.planes is None
    assert one.lesion and one.lesion.read_bytes() == (soop / "NIfTI/bwsrsub-1_lesion.nii.gz").read_bytes()
    assert one.planes and one.planes.read_bytes() == (soop / "PNG/rsub-1_lesion.nii.png").read_bytes()
    assert one.atlas == tmp_path / "out/derivatives/atlas/ArterialAtlas136.nii.gz"
    frame = cohort.read_table().frame.set_index("participant_id")
    assert frame.loc["sub-1", "age"] == "89+" and pd.isna(frame.loc["sub-3", "age"])


def test_files_are_linked_not_copied_and_the_source_stays_as_it_was(tmp_path: Path, soop: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in soop.rglob("*") if path.is_file()}
    import_soop(soop, tmp_path / "out")
    lesion = read_cohort(tmp_path / "out").studies[0].lesion
    assert lesion and lesion.samefile(soop / "NIfTI/bwsrsub-1_lesion.nii.gz")
    assert before == {path: path.stat().st_mtime_ns for path in soop.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["NIfTI/bwsrsub-..%2f9_lesion.nii.gz", "NIfTI/bwsrsub-9 b_lesion.nii.gz"])
def test_a_soop_file_with_a_strange_name_is_listed(tmp_path: Path, soop: Path, name: str) -> None:
    grow(soop, name)
    (item,) = import_soop(soop, tmp_path / "out").rejected
    assert "is not named like" in item.reason


def test_a_soop_link_to_outside_is_listed(tmp_path: Path, soop: Path) -> None:
    grow(tmp_path, "elsewhere.nii.gz")
    (soop / "NIfTI/bwsrsub-9_lesion.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    summary = import_soop(soop, tmp_path / "out")
    assert summary.num_patients == 3 and "outside soop/" in summary.rejected[0].reason


def test_importing_bids_as_soop_names_the_right_word(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="willis cohort import bids"):
        import_soop(grow(tmp_path / "tree", "sub-a/sub-a_dwi.nii.gz"), tmp_path / "out")


def test_bids_files_get_canonical_names_and_keep_space_session_and_sidecar(tmp_path: Path) -> None:
    tree = grow(
        tmp_path / "tree",
        "rawdata/sub-a/ses-2/sub-a_ses-2_dwi.nii.gz",
        "rawdata/sub-a/ses-2/sub-a_ses-2_adc.nii",
        "rawdata/sub-a/ses-2/sub-a_ses-2_flair.nii.gz",
        "derivatives/sub-a/ses-2/sub-a_ses-2_msk.nii.gz",
        "sub-b/sub-b_space-MNI152_rec-TRACE_dwi.nii.gz",
    )
    (tree / "rawdata/sub-a/ses-2/sub-a_ses-2_dwi.json").write_text('{"EchoTime": 0.1}')
    import_bids(tree, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {
        "dataset_description.json",
        "participants.tsv",
        "sub-a/ses-2/dwi/sub-a_ses-2_dwi.nii.gz",
        "sub-a/ses-2/dwi/sub-a_ses-2_dwi.json",
        "sub-a/ses-2/dwi/sub-a_ses-2_adc.nii",
        "sub-a/ses-2/anat/sub-a_ses-2_FLAIR.nii.gz",
        "derivatives/lesion_masks/sub-a/ses-2/sub-a_ses-2_desc-lesion_mask.nii.gz",
        "sub-b/dwi/sub-b_space-MNI152_dwi.nii.gz",
    }
    assert [study.study_id for study in read_cohort(tmp_path / "out").studies] == ["sub-a_ses-2", "sub-b"]


def test_an_imported_cohort_imports_again_as_itself(tmp_path: Path, soop: Path) -> None:
    import_soop(soop, tmp_path / "once")
    import_bids(tmp_path / "once", tmp_path / "twice")
    once, twice = (
        {str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*.*")}
        for name in ("once", "twice")
    )
    assert once == twice


def test_one_patient_under_two_names_is_listed(tmp_path: Path) -> None:
    tree = grow(
        tmp_path / "tree", "sub-a/sub-a_dwi.nii.gz", "sub-b/sub-b_dwi.nii.gz", "sub-c/sub-c_dwi.nii.gz"
    )
    (tree / "sub-b/sub-b_dwi.nii.gz").write_bytes((tree / "sub-a/sub-a_dwi.nii.gz").read_bytes())
    summary = import_bids(tree, tmp_path / "out")
    (item,) = summary.rejected
    assert item.patient_id == "sub-b" and "of sub-a byte for byte" in item.reason
    assert read_cohort(tmp_path / "out").patient_ids == ("sub-a", "sub-c")
    assert "sub-b\tsub-b\t" in (tmp_path / "out/rejected.tsv").read_text()


def test_two_patients_with_equal_masks_are_two_patients(tmp_path: Path) -> None:
    names = [f"derivatives/m/sub-{n}/sub-{n}_desc-lesion_mask.nii.gz" for n in "ab"]
    tree = grow(tmp_path / "tree", "sub-a/sub-a_dwi.nii.gz", "sub-b/sub-b_dwi.nii.gz", *names)
    (tree / names[1]).write_bytes((tree / names[0]).read_bytes())
    assert import_bids(tree, tmp_path / "out").num_patients == 2


def test_a_patient_whose_rows_contradict_each_other_is_left_out(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", "sub-a/sub-a_dwi.nii.gz", "sub-b/sub-b_dwi.nii.gz")
    (tree / "participants.tsv").write_text("participant_id\tage\nsub-a\t70\nsub-b\t60\nsub-b\t61\n")
    summary = import_bids(tree, tmp_path / "out")
    assert summary.num_patients == 1 and "contradict" in summary.rejected[0].reason


def test_the_tables_of_isles24_become_one(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", *(f"raw_data/sub-s{n}/ses-02/sub-s{n}_ses-02_dwi.nii.gz" for n in (1, 2)))
    for number, mrs in ((1, "3"), (2, "")):
        folder = tree / f"phenotype/sub-s{number}"
        (folder / "ses-01").mkdir(parents=True)
        (folder / "ses-02").mkdir()
        stem = f"sub-s{number}_ses-0"
        (folder / f"ses-01/{stem}1_demographic_baseline.csv").write_text(
            f"Age,NIHSS at admission\n7{number},12\n"
        )
        (folder / f"ses-02/{stem}2_outcome.csv").write_text(f"mRS 3 months\n{mrs}\n")
    frame = pd.DataFrame({"Sex": ["F"]})
    frame.to_excel(tree / "phenotype/sub-s1/ses-01/sub-s1_ses-01_history.xlsx", index=False)
    import_bids(tree, tmp_path / "out")
    text = (tmp_path / "out/participants.tsv").read_text()
    assert text.splitlines()[0].split("\t") == [
        "participant_id",
        "Age",
        "NIHSS at admission",
        "Sex",
        "mRS 3 months",
    ]
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    assert rows == [["sub-s1", "71", "12", "F", "3"], ["sub-s2", "72", "12", "n/a", "n/a"]]


def test_a_phenotype_table_of_nobody_is_refused(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", "sub-a/sub-a_dwi.nii.gz")
    (tree / "phenotype").mkdir()
    (tree / "phenotype/all.csv").write_text("age\n1\n2\n")
    with pytest.raises(TableError, match="whose are they"):
        import_bids(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_a_link_to_outside_is_refused(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", "sub-a/sub-a_dwi.nii.gz")
    (tmp_path / "other.tsv").write_text("participant_id\nsub-a\n")
    (tree / "participants.tsv").symlink_to(tmp_path / "other.tsv")
    with pytest.raises(TableError, match="outside"):
        import_bids(tree, tmp_path / "out")


def test_an_import_never_writes_over_a_cohort(tmp_path: Path, soop: Path) -> None:
    grow(tmp_path / "out", "mine.txt")
    with pytest.raises(CohortError, match="exists; remove it"):
        import_soop(soop, tmp_path / "out")


def test_an_import_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, soop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("willis.cohort.soop._place_atlas", full)
    with pytest.raises(StoreError, match=r"no space left for .*out .* nothing of it was kept"):
        import_soop(soop, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["soop"]


def test_what_a_killed_import_left_is_cleared_by_the_next(tmp_path: Path, soop: Path) -> None:
    grow(tmp_path / ".out.importing-999999999", "sub-a/half")
    import_soop(soop, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "soop"]


def test_an_erased_patient_is_in_no_file_name_row_or_truth(tmp_path: Path, soop: Path) -> None:
    import_soop(soop, tmp_path / "out")
    truth = tmp_path / "out/derivatives/truth/truth.parquet"
    truth.parent.mkdir()
    pd.DataFrame({"patient_id": ["sub-1", "sub-2"], "p_poor": [0.1, 0.2]}).to_parquet(truth)
    erased = erase_patient(tmp_path / "out", "sub-1")
    assert (erased.num_files, erased.num_rows, len(erased.md5)) == (2, 2, 2)
    assert not list((tmp_path / "out").rglob("*sub-1*"))
    assert "sub-1\t" not in (tmp_path / "out/participants.tsv").read_text()
    assert list(pd.read_parquet(truth)["patient_id"]) == ["sub-2"]
    assert read_cohort(tmp_path / "out").patient_ids == ("sub-2", "sub-3")
    assert (soop / "NIfTI/bwsrsub-1_lesion.nii.gz").exists()


def test_erasing_one_patient_spares_those_whose_names_begin_alike(tmp_path: Path) -> None:
    tree = grow(tmp_path, "sub-1/sub-1_dwi.nii.gz", "sub-11/sub-11_dwi.nii.gz")
    (tree / "participants.tsv").write_text("participant_id\tage\nsub-1\t1\nsub-11\t11\n11\t1\n")
    erase_patient(tree, "sub-1")
    assert (tree / "participants.tsv").read_text() == "participant_id\tage\nsub-11\t11\n11\t1\n"
    assert (tree / "sub-11/sub-11_dwi.nii.gz").exists()


@pytest.mark.parametrize("name", ["", "sub-", "../x", "sub-1/..", "*"])
def test_erasing_wants_a_patients_label(tmp_path: Path, name: str) -> None:
    with pytest.raises(CohortError, match="must be sub-"):
        erase_patient(tmp_path, name)
