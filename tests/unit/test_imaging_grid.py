import numpy as np
import pytest
from scipy import ndimage

from tests.phantoms import GRID, reoriented
from willis.imaging.grid import Grid, filled_voxels, pour, resample


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 3], [s, c, 0, -5], [0, 0, 1, 2], [0, 0, 0, 1]])


def blob(shape: tuple[int, int, int] = (60, 64, 50)) -> np.ndarray:
    """Smooth and lopsided, so that any mirroring or shift shows."""
    x, y, z = np.indices(shape)
    return (np.exp(-((x - 20) ** 2 + (y - 40) ** 2 + (z - 30) ** 2) / 120) * 100).astype(np.float32)


AFFINE = np.array([[2.5, 0, 0, -75], [0, 2.5, 0, -98], [0, 0, 3, -71], [0, 0, 0, 1.0]])


def test_no_voxel_centre_lies_on_the_midline() -> None:
    x = GRID.affine[0, 0] * np.arange(88) + GRID.affine[0, 3]
    assert np.abs(x).min() == 1 and np.allclose(x, -x[::-1])


def test_a_volume_on_the_grid_is_returned_as_it_is() -> None:
    data = np.random.default_rng(0).random(GRID.shape).astype(np.float32)
    assert resample(data, GRID.affine, GRID) is data


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS"])
def test_resampling_agrees_with_scipy_and_left_stays_left(axes: str) -> None:
    grid = Grid((40, 48, 30), (4.0, 4.0, 5.0))
    affine = turned(12) @ AFFINE
    data, moved = reoriented(blob(), affine, axes)
    to_source = np.linalg.inv(affine) @ grid.affine
    coarser = np.linalg.norm(to_source[:3, :3], axis=1)
    smooth = ndimage.gaussian_filter(blob(), 0.4247 * np.sqrt(coarser**2 - 1), truncate=3)
    expected = ndimage.affine_transform(
        smooth, to_source[:3, :3], to_source[:3, 3], output_shape=grid.shape, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(resample(data, moved, grid), expected, atol=0.02)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR"])
@pytest.mark.parametrize("degrees", [0, 25])
def test_pouring_keeps_the_volume_and_the_place(axes: str, degrees: float) -> None:
    affine = turned(degrees) @ np.diag([1.0, 1.0, 1.0, 1.0])
    mask = np.zeros((50, 50, 40), bool)
    mask[5:12, 30:33, 7:9] = True
    centre = affine[:3, :3] @ [8, 31, 7.5] + affine[:3, 3]
    moved, moved_affine = reoriented(mask, affine, axes)
    shares = pour(filled_voxels(moved), moved_affine, GRID)
    assert shares.sum() * GRID.voxel_ml == pytest.approx(mask.sum() / 1000, rel=1e-5)
    index = np.argwhere(shares > 0)
    place = np.average(index, axis=0, weights=shares[shares > 0]) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    assert (np.abs(place - centre) <= np.array(GRID.spacing_mm) / 4).all()


@pytest.mark.parametrize("degrees", [0, 17])
def test_a_solid_lesion_never_fills_a_voxel_twice(degrees: float) -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[10:23, 8:19, 12:29] = True
    affine = turned(degrees)
    affine[:3, 3] = [-40.3, -30.1, 5.7]
    shares = pour(filled_voxels(mask), affine, GRID)
    assert shares.min() >= 0 and shares.max() <= 1
    # turned voxels are placed by the centres of their parts, so a full cell may overflow by a part
    assert shares.sum() * 16 == pytest.approx(13 * 11 * 17, rel=0.03 if degrees else 1e-4)


def test_one_small_voxel_leaves_its_trace() -> None:
    shares = pour(np.array([[0, 0, 0]]), np.diag([1.0, 1.0, 1.0, 1.0]), GRID)
    assert shares.sum() * GRID.voxel_ml == pytest.approx(1e-3)


def test_nothing_poured_is_nothing() -> None:
    assert pour(np.zeros((0, 3), int), np.eye(4), GRID).sum() == 0


def test_a_mask_on_the_grid_pours_onto_itself() -> None:
    mask = np.random.default_rng(0).random(GRID.shape) > 0.9
    np.testing.assert_allclose(pour(filled_voxels(mask), GRID.affine, GRID), mask, atol=1e-6)
