import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.file_limit import files_of_at_most
from willis.cohort.bids import read_cohort
from willis.cohort.look import contact_sheet
from willis.cohort.schema import CLINICAL_COLUMNS
from willis.cohort.synthetic import draw_patients, synthesise
from willis.errors import CohortError, ParamsError
from willis.params import CohortParams

PARAMS = CohortParams(num_patients=3, seed=5, num_workers=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "cohort"
    synthesise(folder, PARAMS, purpose="stream")
    return folder


def test_the_tree_is_read_as_bids_with_three_sequences_in_standard_space(cohort: Path) -> None:
    read = read_cohort(cohort)
    assert len(read.studies) == 3 and not read.left_out
    for study in read.studies:
        assert study.in_standard_space
        assert None not in (study.dwi, study.adc, study.flair) and study.lesion is None


def test_volumes_are_int16_ras_with_one_affine_in_both_forms(cohort: Path) -> None:
    import nibabel as nib

    for path in sorted(cohort.glob("sub-*/*/*.nii.gz")):
        image = nib.load(path)
        assert image.get_data_dtype() == np.int16
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.allclose(image.header.get_qform(), image.header.get_sform())
        assert image.header.get_zooms() == (2.0, 2.0, 4.0)


def test_the_table_has_every_clinical_column_and_the_description_says_where_it_comes_from(
    cohort: Path,
) -> None:
    table = pd.read_csv(cohort / "participants.tsv", sep="\t", na_values="n/a")
    assert {column.name for column in CLINICAL_COLUMNS} <= set(table.columns)
    assert set(table.columns) == {"participant_id", *json.loads((cohort / "participants.json").read_text())}
    assert (pd.to_datetime(table["scan_time"]) > pd.to_datetime(table["admission_time"])).all()
    described = json.loads((cohort / "dataset_description.json").read_text())["Willis"]
    assert described == {"source": "synthetic", "purpose": "stream", "seed": 5, "preset": "published"}


def test_the_truth_lies_below_derivatives_truth_and_nowhere_else(cohort: Path) -> None:
    truth = pd.read_parquet(cohort / "derivatives" / "truth" / "truth.parquet")
    assert truth["p_poor"].between(0, 1).all() and truth["p_image"].between(0, 1).all()
    outside = [p for p in cohort.rglob("*") if "derivatives" not in p.parts and "mask" in p.name]
    assert not outside
    assert len(list((cohort / "derivatives").rglob("*mask.nii.gz"))) == 3
    assert [p.name for p in (cohort / "derivatives").iterdir()] == ["truth"]


def test_patients_of_a_stream_are_not_those_of_an_evaluation_cohort(cohort: Path) -> None:
    ids = {path.name for path in cohort.glob("sub-*")}
    assert ids == {"sub-stream5n0001", "sub-stream5n0002", "sub-stream5n0003"}
    assert draw_patients(PARAMS).ids == ("sub-0001", "sub-0002", "sub-0003")


def test_a_larger_cohort_begins_with_the_smaller_one() -> None:
    few, more = (draw_patients(CohortParams(num_patients=n, seed=5)) for n in (4, 9))
    assert more.rows[:4] == few.rows
    assert (more.log_odds[:4] == few.log_odds).all()


def test_the_same_cohort_again_is_left_as_it_is(cohort: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    again = synthesise(cohort, PARAMS.model_copy(update={"num_workers": 2}), purpose="stream")
    assert again.num_patients == 3
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


def test_another_cohort_is_not_written_over_this_one(cohort: Path) -> None:
    with pytest.raises(CohortError, match="taken by something else; remove it"):
        synthesise(cohort, PARAMS.model_copy(update={"seed": 6}), purpose="stream")
    assert len(read_cohort(cohort).studies) == 3


def test_a_full_disk_is_said_and_the_next_run_goes_on(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    refused = pytest.raises(CohortError, match="no space.*free some space and run the same command again")
    with files_of_at_most(60_000), refused:
        synthesise(out, PARAMS, purpose="stream")
    assert not out.exists()
    synthesise(out, PARAMS, purpose="stream")
    assert _bytes(out) == _bytes(cohort)


def test_unknown_scanners_and_purposes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="west"):
        synthesise(tmp_path / "a", PARAMS.model_copy(update={"scanners": ("west",)}))
    with pytest.raises(CohortError, match="purpose is 'play'; it must be one of evaluation"):
        synthesise(tmp_path / "a", PARAMS, purpose="play")
    assert not list(tmp_path.iterdir())


def test_the_contact_sheet_is_a_picture_of_bright_brains_on_black(cohort: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    sheet = imread(contact_sheet(cohort, tmp_path / "sheet.png", num_patients=2))
    grey = sheet[..., :3].mean(axis=-1)
    assert 0.15 < (grey > 0.2).mean() < 0.8
    assert (grey < 0.02).mean() > 0.15


def test_a_folder_without_patients_has_no_contact_sheet(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="at least one patient"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
