"""How much of the corticospinal tract an infarct takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from willis.imaging.tract import corticospinal_share


def box(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    """Centres of 1 mm voxels between two corners in MNI millimetres."""
    axes = [np.arange(a, b) + 0.5 for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


CAPSULE_LEFT = box((-40, -35, 2), (-10, 5, 18))


def test_an_infarct_that_holds_the_whole_capsule_takes_the_whole_tract() -> None:
    assert corticospinal_share(CAPSULE_LEFT, 1e-3) == pytest.approx(1.0, abs=0.03)


def test_a_cortical_infarct_far_from_it_takes_nothing() -> None:
    assert corticospinal_share(box((40, -80, 0), (60, -60, 30)), 1e-3) == 0


def test_no_infarct_takes_nothing() -> None:
    assert corticospinal_share(np.zeros((0, 3)), 1e-3) == 0


def test_half_of_the_capsule_is_half_of_the_tract() -> None:
    """At z 8 mm the tube's axis is 23 mm off the midline: what lies further out is one half."""
    outer = CAPSULE_LEFT[(CAPSULE_LEFT[:, 0] < -23) & (CAPSULE_LEFT[:, 2] > 4) & (CAPSULE_LEFT[:, 2] < 10)]
    assert corticospinal_share(outer, 1e-3) == pytest.approx(0.5, abs=0.06)


def test_two_halves_on_two_sides_are_not_one_whole() -> None:
    outer = CAPSULE_LEFT[CAPSULE_LEFT[:, 0] < -23]
    both = np.concatenate([outer, outer * [-1, 1, 1]])
    assert corticospinal_share(both, 1e-3) == corticospinal_share(outer, 1e-3)


def test_thick_slices_tell_the_same_as_thin_ones() -> None:
    thick = CAPSULE_LEFT[np.isin(CAPSULE_LEFT[:, 2], (4.5, 10.5, 16.5))]
    assert corticospinal_share(thick, 6e-3) == pytest.approx(corticospinal_share(CAPSULE_LEFT, 1e-3), abs=0.1)


@given(st.tuples(*[st.floats(-90, 90)] * 3), st.integers(1, 40))
def test_a_share_stays_between_0_and_1_and_grows_with_the_infarct(
    centre: tuple[float, float, float], edge_mm: int
) -> None:
    cube = np.asarray(centre) + box((-edge_mm,) * 3, (edge_mm,) * 3)[:: max(1, edge_mm // 8)]
    half = corticospinal_share(cube[: len(cube) // 2], 1e-3)
    assert 0 <= half <= corticospinal_share(cube, 1e-3) <= 1
