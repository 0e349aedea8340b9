"""Imports of the real patients at hand, against counts taken from the folders by other means."""

from pathlib import Path

import nibabel as nib
import pytest

from willis.cohort.bids import read_cohort
from willis.cohort.bids_import import import_bids
from willis.cohort.soop import import_soop

pytestmark = pytest.mark.integration


def test_the_derived_soop_set_comes_in_whole(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "soop"
    summary = import_soop(source, tmp_path / "cohort")
    lesions = {path.name[4:-14] for path in (source / "NIfTI").glob("bwsrsub-*_lesion.nii.gz")}
    rows = [line.split("\t") for line in (source / "participants.tsv").read_text().splitlines()[1:]]
    assert summary.num_studies == len(lesions) and summary.rejected == ()
    assert set(summary.patients_without_row) == lesions - {row[0] for row in rows}
    assert set(summary.rows_without_images) == {row[0] for row in rows} - lesions
    cohort = read_cohort(tmp_path / "cohort")
    assert all(study.planes and study.lesion and study.in_standard_space for study in cohort.studies)
    frame = cohort.read_table().frame
    complete = frame[frame["participant_id"].isin(cohort.patient_ids)].dropna(
        subset=["nihss", "gs_rankin_6isdeath"]
    )
    # data/README.md: "500 patients have lesion, NIHSS and Rankin".
    assert len(complete) == 500


def test_the_isles22_case_comes_in_with_all_its_sequences(data_dir: Path, tmp_path: Path) -> None:
    import_bids(data_dir / "isles22", tmp_path / "cohort")
    (study,) = read_cohort(tmp_path / "cohort").studies
    shapes = {sequence: nib.load(path).shape for sequence, path in study.volumes()}
    assert shapes == {
        "dwi": (112, 112, 73),
        "adc": (112, 112, 73),
        "flair": (512, 512, 29),
        "lesion": (112, 112, 73),
    }
    assert len(study.sidecars) == 3 and not study.in_standard_space
