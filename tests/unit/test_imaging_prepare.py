"""One study from its files to codes and facts: sides, units, grids, missing sequences."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.phantoms import GRID, LESION_MM, phantom, reoriented, write, write_study
from willis.cohort.bids import StudyFiles
from willis.errors import StudyError
from willis.imaging.prepare import adc_unit, prepare_study
from willis.imaging.shards import decode
from willis.params import IngestParams

PARAMS = IngestParams()
TRUE_ML = 0.016 * int(phantom().lesion.sum())
LEFT_MCA = ((-50, -20, 30), (-40, -8, 46))
RIGHT_MCA = ((40, -20, 30), (50, -8, 46))


def box(shape: tuple[int, ...], affine: Any, low: Any, high: Any) -> Any:
    """Voxels whose centre lies between two corners in MNI millimetres, by the affine alone."""
    points = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    inside = ((points > np.array(low)[:, None]) & (points < np.array(high)[:, None])).all(axis=0)
    return inside.reshape(shape).astype(np.uint8)


def test_a_phantom_with_a_left_lesion_is_measured_as_built(tmp_path: Path) -> None:
    study = prepare_study(write_study(tmp_path), PARAMS)
    facts = study.facts
    assert facts.infarct_present and study.sequence_present.all()
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
    # 30 deviations above the brain's median are beyond the highest code, noise is not
    np.testing.assert_array_equal(study.volume[0] == 255, phantom().lesion == 1)


@pytest.mark.parametrize("axes", ["LAS", "LPS", "SRA"])
def test_left_stays_left_in_every_axis_order(tmp_path: Path, axes: str) -> None:
    straight = prepare_study(write_study(tmp_path / "ras"), PARAMS)
    turned = prepare_study(write_study(tmp_path / axes, axes=axes), PARAMS)
    np.testing.assert_array_equal(turned.volume, straight.volume)
    assert turned.facts == straight.facts


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "RPS", "LPI"])
@pytest.mark.parametrize(("corners", "side"), [(LEFT_MCA, "left"), (RIGHT_MCA, "right")])
def test_a_mask_alone_keeps_its_side_and_volume_in_every_axis_order(
    tmp_path: Path, axes: str, corners: Any, side: str
) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-79, -112, -50]
    empty, affine = reoriented(np.zeros((80, 94, 68)), affine, axes)
    mask = box(empty.shape, affine, *corners)
    files = StudyFiles("sub-a", "sub-a", lesion=write(tmp_path / "m.nii.gz", mask, affine))
    study = prepare_study(replace(files, in_standard_space=True), IngestParams(sequences=("lesion",)))
    assert study.facts.laterality == side
    assert study.facts.volume_ml == pytest.approx(mask.sum() * 0.008)
    shares = study.volume[0].sum(axis=(1, 2), dtype=int)
    there, opposite = (shares[:44], shares[44:]) if side == "left" else (shares[44:], shares[:44])
    assert there.sum() > 0 and opposite.sum() == 0


def test_without_restriction_there_is_no_infarct_and_zero_is_known(tmp_path: Path) -> None:
    facts = prepare_study(write_study(tmp_path, brain=phantom(None)), PARAMS).facts
    assert facts.infarct_present is False and facts.volume_ml == 0 and facts.num_lesions == 0
    assert facts.laterality == "none" and facts.territory == "none"
    assert {load.volume_ml for load in facts.loads} == {0.0}


@pytest.mark.parametrize(("below", "found"), [(600e-6, False), (680e-6, True)])
def test_the_adc_threshold_decides_what_is_infarct(tmp_path: Path, below: float, found: bool) -> None:
    study = prepare_study(
        write_study(tmp_path, brain=phantom(640)), PARAMS.model_copy(update={"adc_below_mm2_s": below})
    )
    assert study.facts.infarct_present is found


@pytest.mark.parametrize(("factor", "unit"), [(1e-6, "mm^2/s"), (1e-3, "1e-3 mm^2/s"), (1, "1e-6 mm^2/s")])
def test_every_unit_of_adc_gives_the_same_facts(tmp_path: Path, factor: float, unit: str) -> None:
    files = write_study(tmp_path)
    adc = (phantom().adc * factor).astype(np.float32)
    study = prepare_study(replace(files, adc=write(tmp_path / "adc.nii.gz", adc, GRID.affine)), PARAMS)
    assert study.adc_unit == unit
    assert study.facts.adc_lesion_mm2_s == pytest.approx(400e-6, rel=0.02)


@pytest.mark.parametrize(
    ("middle", "unit", "factor"),
    [(8.4e-4, "mm^2/s", 1.0), (0.84, "1e-3 mm^2/s", 1e-3), (840.0, "1e-6 mm^2/s", 1e-6)],
)
def test_the_unit_of_adc_is_told_by_the_brains_median(middle: float, unit: str, factor: float) -> None:
    values = np.array([0.5, 0.9, 1.0, 1.1, 3.0], np.float32) * np.float32(middle)
    assert adc_unit(values, "a_adc.nii.gz") == (unit, factor)


@pytest.mark.parametrize(
    "values",
    [np.full(9, middle, np.float32) for middle in (1e-5, 0.03, 24.0, 40.0, 90_000.0)]
    + [np.zeros(0, np.float32)],
    ids=lambda values: f"{values[:1]}",
)
def test_an_adc_in_no_known_unit_is_refused_with_its_median(values: Any) -> None:
    with pytest.raises(StudyError) as caught:
        adc_unit(values, "a_adc.nii.gz")
    middle = f"{values[0]:g}" if values.size else "0"
    assert f"a_adc.nii.gz: the brain's median ADC is {middle}, " in str(caught.value)
    for unit in ("mm^2/s (0.0002-0.005)", "1e-3 mm^2/s (0.2-5)", "1e-6 mm^2/s (200-5000)"):
        assert unit in str(caught.value)


MOVED = GRID.affine + np.array([[0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 4], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("end", "affine", "message"),
    [
        (-2, GRID.affine, r"dwi\.nii\.gz has shape \(88, 104, 40\) and adc\.nii\.gz \(86, 104, 40\)"),
        (None, MOVED, r"affines of sub-01_.*dwi\.nii\.gz and adc\.nii\.gz put a corner 5\.0 mm apart"),
    ],
)
def test_dwi_and_adc_of_different_grids_are_refused(
    tmp_path: Path, end: int | None, affine: Any, message: str
) -> None:
    adc = write(tmp_path / "adc.nii.gz", phantom().adc[:end], affine)
    with pytest.raises(StudyError, match=f"{message}; dwi and adc must lie on one grid: resample one"):
        prepare_study(replace(write_study(tmp_path), adc=adc), PARAMS)


def test_a_mask_on_another_grid_than_the_scanners_image_is_refused(tmp_path: Path) -> None:
    mask = write(tmp_path / "m.nii.gz", phantom().lesion[:, :-4], GRID.affine)
    files = replace(write_study(tmp_path), lesion=mask, in_standard_space=False)
    with pytest.raises(StudyError, match=r"\(88, 100, 40\).*lesion and dwi must lie on one grid"):
        prepare_study(files, PARAMS)


def test_a_given_mask_wins_over_what_diffusion_shows(tmp_path: Path) -> None:
    mask = box(GRID.shape, GRID.affine, *RIGHT_MCA)
    files = write_study(tmp_path)
    study = prepare_study(replace(files, lesion=write(tmp_path / "m.nii.gz", mask, GRID.affine)), PARAMS)
    assert study.facts.laterality == "right"
    assert study.facts.volume_ml == pytest.approx(mask.sum() * 0.016)
    assert study.facts.adc_lesion_mm2_s == pytest.approx(800e-6, rel=0.02)


@pytest.mark.parametrize("kept", [("dwi",), ("flair",), ("dwi", "flair"), ("adc",)])
def test_missing_sequences_are_normal_and_unknown_facts_stay_unknown(tmp_path: Path, kept: Any) -> None:
    study = prepare_study(write_study(tmp_path, kept), PARAMS)
    assert study.sequence_present.tolist() == [name in kept for name in PARAMS.sequences]
    assert study.facts.infarct_present is None and study.facts.volume_ml is None
    assert {load.volume_ml for load in study.facts.loads} == {None}
    for index, name in enumerate(PARAMS.sequences):
        assert study.volume[index].any() == (name in kept)


def test_a_study_with_none_of_the_configured_sequences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"sub-01 has flair; it needs one of dwi, adc .*ingest\.sequences"):
        prepare_study(write_study(tmp_path, ("flair",)), IngestParams(sequences=("dwi", "adc")))


def test_a_mask_on_the_scanners_grid_without_an_image_is_refused(tmp_path: Path) -> None:
    files = replace(write_study(tmp_path, ("lesion",)), in_standard_space=False)
    with pytest.raises(StudyError, match="without an image"):
        prepare_study(files, IngestParams(sequences=("lesion",)))


def test_a_lesion_at_one_millimetre_with_a_reversed_first_axis_keeps_side_and_volume(tmp_path: Path) -> None:
    """The layout of the derived SOOP set: 157 x 189 x 136 at 1 mm, first axis from right to left."""
    affine = np.array([[-1.0, 0, 0, 78], [0, 1, 0, -112], [0, 0, 1, -50], [0, 0, 0, 1]])
    mask = np.zeros((157, 189, 136), np.uint8)
    mask[118:123, 92:102, 80:86] = 1  # x = 78 - 120 = -42 mm: left
    files = replace(write_study(tmp_path, ("lesion",)), lesion=write(tmp_path / "m.nii.gz", mask, affine))
    study = prepare_study(files, IngestParams(sequences=("lesion",)))
    facts = study.facts
    assert (facts.laterality, facts.territory, facts.num_lesions) == ("left", "mca", 1)
    assert facts.volume_ml == pytest.approx(0.3)
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
