import numpy as np
import pytest

from willis.imaging.lesion import Facts, Load, Signals, find_infarct, gather, measure, mirrored_ratio
from willis.imaging.territory import ArterialMap, Region
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


def facts_of(*boxes: tuple[slice, slice, slice], smallest: float = 0.0) -> Facts:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return measure(gather(mask, AFFINE, VOXEL_ML, smallest), halves(), Signals(4.5e-4, 1.6, 1.05))


def box(x: int, y: int = 5, z: int = 5, size: int = 3) -> tuple[slice, slice, slice]:
    return slice(x, x + size), slice(y, y + size), slice(z, z + size)


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


def test_a_tenth_on_the_other_side_makes_it_bilateral() -> None:
    assert facts_of(box(3, size=6), box(34, size=2)).laterality == "left"
    assert facts_of(box(3, size=6), box(34, size=3)).laterality == "bilateral"
    assert facts_of(box(3, size=6), box(34, size=3)).territory == "mca"
    assert facts_of(box(3, size=4), box(34, size=4)).territory == "multiple"


def test_one_lesion_across_the_midline_is_midline() -> None:
    assert facts_of(box(18, size=4)).laterality == "midline"


def test_a_small_deep_lesion_is_a_lacune_and_a_large_one_is_not() -> None:
    assert facts_of(box(15, 17, 9, size=3)).territory == "lacune"
    assert facts_of((slice(14, 20), slice(13, 25), slice(7, 12))).territory == "mca"


def test_components_below_the_smallest_volume_are_noise() -> None:
    facts = facts_of(box(3, size=4), box(12, size=1), smallest=0.05)
    assert facts.num_lesions == 1 and facts.volume_ml == pytest.approx(64 * VOXEL_ML)


def test_no_lesion_is_zero_and_not_unknown() -> None:
    facts = facts_of()
    assert facts.infarct_present is False and facts.volume_ml == 0 and facts.laterality == "none"
    assert facts.adc_lesion_mm2_s is None and {load.volume_ml for load in facts.loads} == {0.0}


@pytest.mark.parametrize(
    "facts", [facts_of(box(3)), facts_of(), Facts(loads=(Load(region="a", volume_ml=None),))]
)
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


def test_the_ratio_is_taken_against_the_mirrored_side() -> None:
    values = np.full(SHAPE, 100, np.float32)
    values[20:] = 200
    lesion = np.zeros(SHAPE, bool)
    lesion[box(5)] = True
    values[box(5)] = 300
    assert mirrored_ratio(values, lesion, np.ones(SHAPE, bool)) == pytest.approx(1.5)
    assert mirrored_ratio(values, np.zeros(SHAPE, bool), np.ones(SHAPE, bool)) is None
