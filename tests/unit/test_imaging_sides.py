"""Lesions found and measured: sides, millilitres, territories; phantoms whose answers are counted by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from willis.cohort.bids import StudyFiles
from willis.errors import StudyError
from willis.imaging.grid import Grid, filled_voxels, pour
from willis.imaging.lesion import (
    Facts,
    Lesion,
    Load,
    Signals,
    gather,
    laterality,
    measure,
    mirrored_ratio,
)
from willis.imaging.prepare import prepare_study, template_brain
from willis.imaging.shards import decode
from willis.imaging.territory import default_map
from willis.params import IngestParams

PARAMS = IngestParams()
GRID = Grid(PARAMS.shape, PARAMS.spacing_mm)
SOOP_SHAPE, SOOP_AFFINE = (157, 189, 136), np.diag([-1.0, 1, 1, 1])
SOOP_AFFINE[:3, 3] = [78, -112, -50]
"""The grid of the derived SOOP set, whose first axis runs from right to left."""


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    """Write one volume with both forms."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    nib.save(image, path)
    return path


def turned(affine: np.ndarray, shape: tuple[int, ...], axes: str) -> np.ndarray:
    """The affine of the same box in space, stored in another axis order of the same axes."""
    out = affine.copy()
    for axis, (letter, plus) in enumerate(zip(axes, "RAS", strict=True)):
        if letter != plus:
            out[:, 3] += affine[:, axis] * (shape[axis] - 1)
            out[:, axis] = -affine[:, axis]
    return out


def box(shape: tuple[int, ...], affine: np.ndarray, low: tuple, high: tuple) -> np.ndarray:
    """Voxels whose centre lies between two corners in MNI millimetres, by the affine alone."""
    index = np.indices(shape).reshape(3, -1)
    points = affine[:3, :3] @ index + affine[:3, 3:]
    inside = ((points > np.array(low)[:, None]) & (points < np.array(high)[:, None])).all(axis=0)
    return inside.reshape(shape)


LEFT_MCA = ((-50, -20, 30), (-40, -8, 46))
RIGHT_MCA = ((38, -20, 30), (54, -8, 46))


def brain_study(
    folder: Path,
    infarct: np.ndarray,
    *,
    adc: float = 400.0,
    axes: str = "RAS",
    mask: np.ndarray | None = None,
) -> StudyFiles:
    """DWI, ADC (1e-6 mm^2/s) and FLAIR of a brain on the canonical grid, restricted in `infarct`."""
    random = np.random.default_rng(5)
    brain = template_brain(GRID)
    affine = turned(GRID.affine, GRID.shape, axes)
    flip = tuple(slice(None, None, 1 if a == b else -1) for a, b in zip(axes, "RAS", strict=True))
    dwi = np.where(brain, 100 + 5 * random.standard_normal(brain.shape), 0)
    diffusion = np.where(brain, 850 + 30 * random.standard_normal(brain.shape), 0)
    flair = np.where(brain, 200 + 5 * random.standard_normal(brain.shape), 0)
    dwi[infarct], diffusion[infarct], flair[infarct] = 200, adc, 300
    paths = {
        name: save(folder / f"sub-a_{name}.nii.gz", data[flip].astype(np.float32), affine)
        for name, data in (("dwi", dwi), ("adc", diffusion), ("flair", flair))
    }
    if mask is not None:
        paths["lesion"] = save(folder / "sub-a_mask.nii.gz", mask[flip].astype(np.uint8), affine)
    return StudyFiles("sub-a", "sub-a", **paths, in_standard_space=True)


def side_of(codes: np.ndarray) -> str:
    """The half of the RAS+ grid in which the codes lie."""
    left, right = codes[: GRID.shape[0] // 2].sum(), codes[GRID.shape[0] // 2 :].sum()
    return "left" if right == 0 else "right" if left == 0 else "both"


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "RPS", "LPI"])
@pytest.mark.parametrize(("corners", "side"), [(LEFT_MCA, "left"), (RIGHT_MCA, "right")])
def test_a_given_mask_keeps_its_side_in_every_axis_order(
    tmp_path: Path, axes: str, corners: tuple, side: str
) -> None:
    shape, affine = (80, 94, 68), np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-79, -112, -50]
    affine = turned(affine, shape, axes)
    inside = box(shape, affine, *corners)
    path = save(tmp_path / "sub-a_mask.nii.gz", inside.astype(np.uint8), affine)
    study = StudyFiles("sub-a", "sub-a", lesion=path, in_standard_space=True)
    done = prepare_study(study, IngestParams(sequences=("lesion",)))
    assert done.facts.laterality == side and side_of(done.volume[0]) == side
    assert done.facts.volume_ml == pytest.approx(inside.sum() * 0.008)


def test_a_lesion_on_soops_mirrored_axis_stays_on_its_side_and_keeps_its_volume(tmp_path: Path) -> None:
    inside = np.zeros(SOOP_SHAPE, np.uint8)
    inside[118:128, 92:104, 80:96] = 1  # x = 78 - 118 = -40 to -49: the left hemisphere
    path = save(tmp_path / "sub-a_mask.nii.gz", inside, SOOP_AFFINE)
    study = StudyFiles("sub-a", "sub-a", lesion=path, in_standard_space=True)
    done = prepare_study(study, IngestParams(sequences=("lesion",)))
    assert done.facts.laterality == "left" and side_of(done.volume[0]) == "left"
    assert done.facts.territory == "mca" and done.facts.num_lesions == 1
    assert done.facts.volume_ml == pytest.approx(10 * 12 * 16 / 1000)
    # a box of 1920 voxels of 1 mm on voxels of 16 mm^3, each share rounded to 1/255
    assert decode(done.volume, ("lesion",)).sum() * 0.016 == pytest.approx(1.92, rel=0.01)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS"])
def test_an_infarct_found_by_diffusion_keeps_side_volume_and_place(tmp_path: Path, axes: str) -> None:
    infarct = box(GRID.shape, GRID.affine, *LEFT_MCA)
    done = prepare_study(brain_study(tmp_path, infarct, axes=axes), PARAMS)
    facts = done.facts
    assert facts.infarct_present and facts.laterality == "left" and facts.num_lesions == 1
    assert facts.volume_ml == pytest.approx(infarct.sum() * 0.016, rel=0.02)
    assert facts.territory == "mca" and facts.adc_lesion_mm2_s == pytest.approx(400e-6, rel=0.01)
    assert facts.dwi_ratio == pytest.approx(2.0, rel=0.02)
    assert facts.flair_ratio == pytest.approx(1.5, rel=0.02) and facts.dwi_flair_mismatch is False
    assert done.sequence_present.all() and done.adc_unit == "1e-6 mm^2/s"
    # 20 deviations above the brain's median are beyond the highest code, noise is not
    np.testing.assert_array_equal(done.volume[0] == 255, infarct)


def test_without_restriction_there_is_no_infarct_and_zero_is_known(tmp_path: Path) -> None:
    nothing = np.zeros(GRID.shape, bool)
    facts = prepare_study(brain_study(tmp_path, nothing), PARAMS).facts
    assert facts.infarct_present is False and facts.volume_ml == 0 and facts.num_lesions == 0
    assert facts.laterality == "none" and facts.territory == "none"
    assert {load.volume_ml for load in facts.loads} == {0.0}


@pytest.mark.parametrize(("below", "found"), [(600e-6, False), (680e-6, True)])
def test_the_adc_threshold_decides_what_is_infarct(tmp_path: Path, below: float, found: bool) -> None:
    infarct = box(GRID.shape, GRID.affine, *LEFT_MCA)
    study = brain_study(tmp_path, infarct, adc=640.0)
    done = prepare_study(study, IngestParams(adc_below_mm2_s=below))
    assert done.facts.infarct_present is found


def test_a_given_mask_wins_over_what_diffusion_shows(tmp_path: Path) -> None:
    infarct = box(GRID.shape, GRID.affine, *LEFT_MCA)
    mask = box(GRID.shape, GRID.affine, *RIGHT_MCA)
    done = prepare_study(brain_study(tmp_path, infarct, mask=mask), PARAMS)
    assert done.facts.laterality == "right"
    assert done.facts.volume_ml == pytest.approx(mask.sum() * 0.016)
    assert done.facts.adc_lesion_mm2_s == pytest.approx(850e-6, rel=0.02)


def test_without_mask_and_diffusion_the_lesion_is_not_known_rather_than_absent(tmp_path: Path) -> None:
    files = brain_study(tmp_path, np.zeros(GRID.shape, bool))
    done = prepare_study(StudyFiles("sub-a", "sub-a", flair=files.flair, in_standard_space=True), PARAMS)
    assert done.facts.infarct_present is None and done.facts.volume_ml is None
    assert {load.volume_ml for load in done.facts.loads} == {None}
    assert done.sequence_present.tolist() == [False, False, True]
    assert not done.volume[0].any() and done.volume[2].any()


def test_a_study_without_any_configured_sequence_is_refused(tmp_path: Path) -> None:
    files = brain_study(tmp_path, np.zeros(GRID.shape, bool))
    study = StudyFiles("sub-a", "sub-a", flair=files.flair, in_standard_space=True)
    with pytest.raises(StudyError, match=r"sub-a has flair; it needs one of dwi.*ingest\.sequences"):
        prepare_study(study, IngestParams(sequences=("dwi",)))


def test_components_below_the_smallest_lesion_are_taken_for_noise() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:3, 1, 1] = True  # 2 voxels
    mask[6:8, 6:8, 6:9] = True  # 12 voxels
    mask[10, 10, 10] = mask[11, 11, 11] = True  # one component of 2, joined by a corner
    kept = gather(mask, np.eye(4), voxel_ml=0.016, min_lesion_ml=0.05)
    assert kept.num_components == 1 and kept.volume_ml == pytest.approx(12 * 0.016)
    every = gather(mask, np.eye(4), voxel_ml=0.016, min_lesion_ml=0.0)
    assert every.num_components == 3 and every.volume_ml == pytest.approx(16 * 0.016)


def lesion_of(*parts: tuple[int, tuple[float, float, float]], components: int = 1) -> Lesion:
    """A lesion of so many voxels at each point."""
    points = np.concatenate([np.tile(np.array(point, float), (count, 1)) for count, point in parts])
    return Lesion((1, 1, 1), np.zeros((len(points), 3), np.int64), components, points, 0.01)


@pytest.mark.parametrize(
    ("left", "right", "side"),
    [(100, 0, "left"), (0, 100, "right"), (91, 9, "left"), (9, 91, "right"), (85, 15, "bilateral")],
)
def test_a_minor_side_below_a_tenth_does_not_make_a_lesion_bilateral(
    left: int, right: int, side: str
) -> None:
    assert laterality(lesion_of((left, (-30, 0, 0)), (right, (30, 0, 0)), components=2)) == side


def test_one_lesion_across_the_midline_is_midline_and_two_are_bilateral() -> None:
    parts = ((50, (-3.0, -30.0, -30.0)), (50, (3.0, -30.0, -30.0)))
    assert laterality(lesion_of(*parts, components=1)) == "midline"
    assert laterality(lesion_of(*parts, components=2)) == "bilateral"


# MNI coordinates of structures whose artery no textbook disputes
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(
    ("place", "artery"),
    [
        ((40, -8, 50), "mca"),  # precentral gyrus, hand area
        ((40, 0, 4), "mca"),  # insula
        ((56, -24, 10), "mca"),  # superior temporal gyrus
        ((6, 50, 10), "aca"),  # medial frontal
        ((10, -86, 4), "pca"),  # calcarine cortex
        ((28, -64, -38), "vertebrobasilar"),  # cerebellar hemisphere
        ((5, -28, -34), "vertebrobasilar"),  # pons
    ],
)
def test_known_places_lie_in_their_arterys_territory(side: int, place: tuple, artery: str) -> None:
    x, y, z = place
    facts = measure(lesion_of((500, (side * x, y, z))), default_map(), Signals())
    assert facts.territory == artery
    (load,) = [load for load in facts.loads if load.volume_ml]
    assert load.region.endswith("_left" if side < 0 else "_right")
    assert load.volume_ml == pytest.approx(5.0)


def test_a_small_thalamic_lesion_is_a_lacune_and_a_large_one_is_not() -> None:
    small = measure(lesion_of((100, (12, -18, 8))), default_map(), Signals())
    large = measure(lesion_of((400, (12, -18, 8))), default_map(), Signals())
    assert (small.territory, large.territory) == ("lacune", "pca")


def test_a_lesion_without_a_main_artery_is_multiple() -> None:
    parts = ((50, (40.0, -8.0, 50.0)), (50, (10.0, -86.0, 4.0)))
    assert measure(lesion_of(*parts, components=2), default_map(), Signals()).territory == "multiple"


def test_the_loads_of_all_regions_add_up_to_the_volume() -> None:
    brain = template_brain(GRID)
    mask = brain & (default_map().at(_centres()).reshape(GRID.shape) > 0)
    lesion = gather(mask, GRID.affine, GRID.voxel_ml, 0.0)
    facts = measure(lesion, default_map(), Signals())
    total = sum(load.volume_ml or 0.0 for load in facts.loads)
    assert total == pytest.approx(int(mask.sum()) * 0.016) and facts.volume_ml == pytest.approx(total)
    left = sum(load.volume_ml or 0.0 for load in facts.loads if load.region.endswith("_left"))
    assert left / total == pytest.approx(0.5, abs=0.02)


def _centres() -> np.ndarray:
    index = np.indices(GRID.shape).reshape(3, -1)
    return (GRID.affine[:3, :3] @ index + GRID.affine[:3, 3:]).T


@pytest.mark.parametrize("degrees", [0.0, 17.0])
def test_pouring_a_lesion_on_the_grid_keeps_its_volume(degrees: float) -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[10:23, 8:19, 12:29] = True
    turn = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, 3] = [-40.3, -30.1, 5.7]
    share = pour(filled_voxels(mask), affine, GRID)
    assert share.min() >= 0 and share.max() <= 1
    # turned voxels are placed by the centres of their parts, so a full cell may overflow by a part
    assert share.sum() * 16 == pytest.approx(13 * 11 * 17, rel=1e-4 if degrees == 0 else 0.03)


def test_a_lesion_smaller_than_a_voxel_leaves_its_trace() -> None:
    affine = np.eye(4)
    affine[:3, 3] = [-30.0, -20.0, 20.0]
    share = pour(np.array([[0, 0, 0]]), affine, GRID)
    assert share.sum() == pytest.approx(1 / 16)


def test_the_mirrored_ratio_compares_with_the_healthy_side_by_hand() -> None:
    values = np.full((4, 3, 1), 10, np.float32)
    lesion = np.zeros((4, 3, 1), bool)
    lesion[0, 0:2, 0] = True
    values[0, 0:2, 0] = [30, 50]
    values[3, 0:2, 0] = [16, 24]
    assert mirrored_ratio(values, lesion, np.ones_like(lesion)) == pytest.approx(40 / 20)
    assert mirrored_ratio(values, np.zeros_like(lesion), np.ones_like(lesion)) is None


def test_facts_survive_the_way_through_a_row_with_nothing_known_and_with_everything() -> None:
    loads = (Load(region="mca_left", volume_ml=2.5), Load(region="pca_right", volume_ml=0.0))
    known = Facts(
        infarct_present=True, volume_ml=2.5, num_lesions=1, laterality="left", territory="mca",
        adc_lesion_mm2_s=4e-4, dwi_ratio=1.9, flair_ratio=1.1, dwi_flair_mismatch=True, loads=loads,
    )  # fmt: skip
    unknown = Facts(loads=tuple(Load(region=load.region, volume_ml=None) for load in loads))
    for facts in (known, unknown):
        assert Facts.from_row({**facts.to_row(), "patient_id": "sub-a"}) == facts
    assert Facts.from_row({"volume_ml": float("nan"), "load_mca_left": float("nan")}).volume_ml is None
