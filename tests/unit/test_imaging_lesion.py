"""Lesions found and measured: sides, millilitres, territories; phantoms whose answers are counted by hand."""

import numpy as np
import pytest

from tests.phantoms import GRID
from willis.imaging.lesion import (
    Facts,
    Lesion,
    Load,
    Signals,
    find_infarct,
    gather,
    laterality,
    measure,
    mirrored_ratio,
)
from willis.imaging.prepare import template_brain
from willis.imaging.territory import ArterialMap, Region, default_map
from willis.imaging.volume import Volume

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
AFFINE[:3, 3] = [-39, -39, -38]
VOXEL_ML = 0.016
SHAPE = (40, 40, 20)


def halves() -> ArterialMap:
    """Left half is mca, right half pca, with a deep core on both sides."""
    labels = np.ones(SHAPE, np.int16)
    labels[20:] = 2
    labels[14:20, 15:25, 8:12] = 3
    regions = (
        Region("mca_left", "mca", "left", False),
        Region("pca_right", "pca", "right", False),
        Region("deep_left", "mca", "left", True),
    )
    return ArterialMap(labels, AFFINE, regions)


def facts_of(*boxes: tuple[slice, slice, slice]) -> Facts:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return measure(gather(mask, AFFINE, VOXEL_ML, 0.0), halves(), Signals(4.5e-4, 1.6, 1.05))


def box(x: int, y: int = 5, z: int = 5, size: int = 3) -> tuple[slice, slice, slice]:
    return slice(x, x + size), slice(y, y + size), slice(z, z + size)


def lesion_of(*parts: tuple[int, tuple[float, float, float]], components: int = 1) -> Lesion:
    """A lesion of so many voxels of 0.01 ml at each point in MNI space."""
    points = np.concatenate([np.tile(np.array(point, float), (count, 1)) for count, point in parts])
    return Lesion((1, 1, 1), np.zeros((len(points), 3), np.int64), components, points, 0.01)


def test_volume_side_territory_and_loads_of_a_left_lesion() -> None:
    facts = facts_of(box(3, size=6))
    assert facts.volume_ml == pytest.approx(216 * VOXEL_ML)
    assert (facts.laterality, facts.territory, facts.num_lesions) == ("left", "mca", 1)
    assert facts.loads[0].region == "mca_left"
    assert facts.loads[0].volume_ml == pytest.approx(216 * VOXEL_ML)
    assert facts.loads[1].volume_ml == 0
    assert facts.dwi_flair_mismatch is True


def test_the_same_lesion_mirrored_is_right() -> None:
    facts = facts_of(box(31, size=6))
    assert (facts.laterality, facts.territory) == ("right", "pca")
    assert facts.volume_ml == facts_of(box(3, size=6)).volume_ml


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
    assert facts_of(box(18, size=4)).laterality == "midline"


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(
    ("place", "artery"), [((40, -8, 50), "mca"), ((6, 50, 10), "aca"), ((10, -86, 4), "pca")]
)
def test_a_lesion_at_a_known_place_loads_one_region_of_its_artery_and_side(
    side: int, place: tuple[int, int, int], artery: str
) -> None:
    x, y, z = place
    facts = measure(lesion_of((500, (side * x, y, z))), default_map(), Signals())
    (load,) = [load for load in facts.loads if load.volume_ml]
    assert facts.territory == artery and load.region.startswith(f"{artery}_")
    assert load.region.endswith("_left" if side < 0 else "_right")
    assert load.volume_ml == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("place", "num_voxels", "found"),
    [
        ((12, -18, 8), 100, "lacune"),  # thalamus, 1 ml
        ((12, -18, 8), 400, "pca"),
        ((26, 4, 2), 100, "lacune"),  # putamen
        ((26, 4, 2), 400, "mca"),
        ((40, -8, 50), 100, "mca"),  # cortex, where nothing is a lacune
    ],
)
def test_a_small_deep_lesion_is_a_lacune_and_a_large_or_shallow_one_is_not(
    place: tuple[float, float, float], num_voxels: int, found: str
) -> None:
    assert measure(lesion_of((num_voxels, place)), default_map(), Signals()).territory == found


@pytest.mark.parametrize(("share", "found"), [(50, "multiple"), (59, "multiple"), (60, "mca"), (89, "mca")])
def test_a_lesion_without_a_main_artery_is_multiple(share: int, found: str) -> None:
    parts = ((share, (40.0, -8.0, 50.0)), (100 - share, (10.0, -86.0, 4.0)))
    assert measure(lesion_of(*parts, components=2), default_map(), Signals()).territory == found


def test_the_loads_of_all_regions_add_up_to_the_volume() -> None:
    index = np.indices(GRID.shape).reshape(3, -1)
    centres = (GRID.affine[:3, :3] @ index + GRID.affine[:3, 3:]).T
    mask = template_brain(GRID) & (default_map().at(centres).reshape(GRID.shape) > 0)
    facts = measure(gather(mask, GRID.affine, GRID.voxel_ml, 0.0), default_map(), Signals())
    total = sum(load.volume_ml or 0.0 for load in facts.loads)
    assert total == pytest.approx(int(mask.sum()) * 0.016) and facts.volume_ml == pytest.approx(total)
    left = sum(load.volume_ml or 0.0 for load in facts.loads if load.region.endswith("_left"))
    assert left / total == pytest.approx(0.5, abs=0.02)


def test_components_below_the_smallest_lesion_are_taken_for_noise() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:3, 1, 1] = True  # 2 voxels
    mask[6:8, 6:8, 6:9] = True  # 12 voxels
    mask[10, 10, 10] = mask[11, 11, 11] = True  # one component of 2, joined by a corner
    kept = gather(mask, np.eye(4), voxel_ml=0.016, min_lesion_ml=0.05)
    assert kept.num_components == 1 and kept.volume_ml == pytest.approx(12 * 0.016)
    every = gather(mask, np.eye(4), voxel_ml=0.016, min_lesion_ml=0.0)
    assert every.num_components == 3 and every.volume_ml == pytest.approx(16 * 0.016)


def test_no_lesion_is_zero_and_not_unknown() -> None:
    facts = facts_of()
    assert facts.infarct_present is False and facts.volume_ml == 0 and facts.laterality == "none"
    assert facts.adc_lesion_mm2_s is None and {load.volume_ml for load in facts.loads} == {0.0}


KNOWN = Facts(
    infarct_present=True, volume_ml=2.5, num_lesions=1, laterality="left", territory="mca",
    adc_lesion_mm2_s=4e-4, dwi_ratio=1.9, flair_ratio=1.1, dwi_flair_mismatch=True, midline_shift_mm=0.5,
    loads=(Load(region="mca_left", volume_ml=2.5), Load(region="pca_right", volume_ml=0.0)),
)  # fmt: skip


@pytest.mark.parametrize("facts", [KNOWN, facts_of(), Facts(loads=(Load(region="a", volume_ml=None),))])
def test_facts_survive_a_row_with_nan_for_unknown(facts: Facts) -> None:
    row = {name: float("nan") if value is None else value for name, value in facts.to_row().items()}
    row |= {"patient_id": "sub-1", "event_time": None}
    numbers = {name: float(value) if isinstance(value, bool | int) else value for name, value in row.items()}
    assert Facts.from_row(numbers) == facts


def scene(seed: int = 0) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Noisy DWI and ADC with one infarct, one bright place of normal ADC and one dark place of low ADC."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[3:37, 3:37, 2:18] = True
    dwi = np.where(brain, 300 + rng.normal(0, 15, SHAPE), 0).astype(np.float32)
    adc = np.where(brain, 8e-4 + rng.normal(0, 5e-5, SHAPE), 0).astype(np.float32)
    dwi[8:13, 8:13, 6:10] += 250
    adc[8:13, 8:13, 6:10] = 4e-4
    dwi[25:30, 8:13, 6:10] += 250
    adc[8:13, 25:30, 6:10] = 4e-4
    return Volume(dwi, AFFINE, "phantom"), adc, brain


def test_only_bright_dwi_with_low_adc_is_an_infarct() -> None:
    dwi, adc, brain = scene()
    found = find_infarct(dwi, adc, brain, 620e-6)
    expected = np.zeros(SHAPE, bool)
    expected[8:13, 8:13, 6:10] = True
    np.testing.assert_array_equal(found, expected)


def test_single_voxels_of_noise_are_no_infarct() -> None:
    dwi, adc, brain = scene()
    dwi.data[30, 30, 10], adc[30, 30, 10] = 380, 5e-4
    assert not find_infarct(dwi, adc, brain, 620e-6)[30, 30, 10]


def test_the_mirrored_ratio_compares_with_the_healthy_side_by_hand() -> None:
    values = np.full((4, 3, 1), 10, np.float32)
    lesion = np.zeros((4, 3, 1), bool)
    lesion[0, 0:2, 0] = True
    values[0, 0:2, 0] = [30, 50]
    values[3, 0:2, 0] = [16, 24]
    assert mirrored_ratio(values, lesion, np.ones_like(lesion)) == pytest.approx(40 / 20)
    assert mirrored_ratio(values, np.zeros_like(lesion), np.ones_like(lesion)) is None


def test_where_both_sides_are_ill_the_brains_median_stands_in() -> None:
    values = np.full((4, 3, 1), 10, np.float32)
    lesion = np.zeros((4, 3, 1), bool)
    lesion[[0, 3], 0, 0] = True
    values[[0, 3], 0, 0] = [30, 50]
    assert mirrored_ratio(values, lesion, np.ones_like(lesion)) == pytest.approx(40 / 10)
