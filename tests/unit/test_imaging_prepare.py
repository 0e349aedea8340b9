from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.phantoms import GRID, LESION_MM, phantom, reoriented, write, write_study
from willis.errors import StudyError
from willis.imaging.prepare import prepare_study
from willis.imaging.shards import decode
from willis.params import IngestParams

PARAMS = IngestParams()
TRUE_ML = 0.016 * int(phantom().lesion.sum())


def test_a_phantom_with_a_left_lesion_is_measured_as_built(tmp_path: Path) -> None:
    study = prepare_study(write_study(tmp_path), PARAMS)
    facts = study.facts
    assert (facts.laterality, facts.territory, facts.num_lesions) == ("left", "mca", 1)
    assert facts.volume_ml == pytest.approx(TRUE_ML, rel=0.02)
    assert facts.adc_lesion_mm2_s == pytest.approx(400e-6, rel=0.02)
    assert facts.dwi_ratio == pytest.approx(2.0, rel=0.02)
    assert facts.flair_ratio == pytest.approx(1.5, rel=0.02) and facts.dwi_flair_mismatch is False
    assert study.adc_unit == "1e-6 mm^2/s" and study.registration_quality == 1.0


def test_codes_are_standardised_and_the_lesion_lies_at_the_lower_x(tmp_path: Path) -> None:
    study = prepare_study(write_study(tmp_path), PARAMS)
    dwi, adc, _ = decode(study.volume, PARAMS.sequences)
    brain = study.volume[0] > 0
    assert abs(np.median(dwi[brain])) < 0.1
    assert np.median(adc[brain]) == pytest.approx(0.8, abs=0.02)
    x = np.argwhere((adc > 0) & (adc < 0.6))[:, 0].mean() * 2 + GRID.affine[0, 3]
    assert x == pytest.approx(LESION_MM[0], abs=1)


@pytest.mark.parametrize("axes", ["LAS", "LPS", "SRA"])
def test_left_stays_left_in_every_axis_order(tmp_path: Path, axes: str) -> None:
    straight = prepare_study(write_study(tmp_path / "ras"), PARAMS)
    turned = prepare_study(write_study(tmp_path / axes, axes=axes), PARAMS)
    np.testing.assert_array_equal(turned.volume, straight.volume)
    assert turned.facts == straight.facts


@pytest.mark.parametrize(("factor", "unit"), [(1e-6, "mm^2/s"), (1e-3, "1e-3 mm^2/s"), (1, "1e-6 mm^2/s")])
def test_every_unit_of_adc_gives_the_same_facts(tmp_path: Path, factor: float, unit: str) -> None:
    files = write_study(tmp_path)
    adc = (phantom().adc * factor).astype(np.float32)
    study = prepare_study(replace(files, adc=write(tmp_path / "adc.nii.gz", adc, GRID.affine)), PARAMS)
    assert study.adc_unit == unit
    assert study.facts.adc_lesion_mm2_s == pytest.approx(400e-6, rel=0.02)


def test_an_adc_of_no_known_unit_is_refused(tmp_path: Path) -> None:
    files = write_study(tmp_path)
    adc = write(tmp_path / "adc.nii.gz", (phantom().adc * 0.03).astype(np.float32), GRID.affine)
    with pytest.raises(StudyError, match=r"median ADC is 24.*1e-3 mm\^2/s"):
        prepare_study(replace(files, adc=adc), PARAMS)


def test_mismatched_dwi_and_adc_are_refused(tmp_path: Path) -> None:
    files = write_study(tmp_path)
    adc = write(tmp_path / "adc.nii.gz", phantom().adc[:-2], GRID.affine)
    with pytest.raises(StudyError, match=r"\(88, 104, 40\).*\(86, 104, 40\).*must lie on one grid"):
        prepare_study(replace(files, adc=adc), PARAMS)


def test_a_given_mask_wins(tmp_path: Path) -> None:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[60:64, 50:54, 20:22] = 1
    files = write_study(tmp_path)
    study = prepare_study(replace(files, lesion=write(tmp_path / "m.nii.gz", mask, GRID.affine)), PARAMS)
    assert study.facts.laterality == "right"
    assert study.facts.volume_ml == pytest.approx(mask.sum() * 0.016)


@pytest.mark.parametrize("kept", [("dwi",), ("flair",), ("dwi", "flair"), ("adc",)])
def test_missing_sequences_are_normal_and_unknown_facts_stay_unknown(tmp_path: Path, kept: Any) -> None:
    study = prepare_study(write_study(tmp_path, kept), PARAMS)
    assert study.sequence_present.tolist() == [name in kept for name in PARAMS.sequences]
    assert study.facts.infarct_present is None and study.facts.volume_ml is None
    for index, name in enumerate(PARAMS.sequences):
        assert study.volume[index].any() == (name in kept)


def test_a_study_with_none_of_the_configured_sequences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="has flair; it needs one of lesion"):
        prepare_study(write_study(tmp_path, ("flair",)), IngestParams(sequences=("lesion",)))


def test_a_mask_on_the_scanners_grid_without_an_image_is_refused(tmp_path: Path) -> None:
    files = replace(write_study(tmp_path, ("lesion",)), in_standard_space=False)
    with pytest.raises(StudyError, match="without an image"):
        prepare_study(files, IngestParams(sequences=("lesion",)))


def test_a_lesion_at_one_millimetre_with_a_reversed_first_axis_keeps_side_and_volume(tmp_path: Path) -> None:
    """The layout of the derived SOOP set: 157 x 189 x 136 at 1 mm, first axis from right to left."""
    affine = np.array([[-1.0, 0, 0, 78], [0, 1, 0, -112], [0, 0, 1, -50], [0, 0, 0, 1]])
    mask = np.zeros((157, 189, 136), np.uint8)
    mask[118:123, 100:110, 60:66] = 1  # x = 78 - 120 = -42 mm: left
    files = replace(write_study(tmp_path, ("lesion",)), lesion=write(tmp_path / "m.nii.gz", mask, affine))
    study = prepare_study(files, IngestParams(sequences=("lesion",)))
    assert study.facts.laterality == "left" and study.facts.volume_ml == pytest.approx(0.3)
    share = decode(study.volume, ("lesion",))[0]
    assert share.sum() * GRID.voxel_ml == pytest.approx(0.3, rel=0.01)
    assert np.average(np.arange(88), weights=share.sum(axis=(1, 2))) * 2 - 87 == pytest.approx(-42, abs=0.1)


def test_a_volume_in_standard_space_on_another_grid_is_resampled(tmp_path: Path) -> None:
    files = write_study(tmp_path)
    flair, affine = reoriented(phantom().flair[::2], GRID.affine @ np.diag([2.0, 1, 1, 1]), "LPS")
    study = prepare_study(replace(files, flair=write(tmp_path / "f.nii.gz", flair, affine)), PARAMS)
    assert study.facts.flair_ratio == pytest.approx(1.5, rel=0.05)


def test_studies_are_prepared_to_the_same_bytes_every_time(tmp_path: Path) -> None:
    files = write_study(tmp_path)
    assert prepare_study(files, PARAMS).volume.tobytes() == prepare_study(files, PARAMS).volume.tobytes()
