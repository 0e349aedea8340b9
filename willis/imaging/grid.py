"""The canonical grid in MNI space, and the two roads onto it.

Arrays are (X, Y, Z) in RAS+ (X grows towards the patient's right). The default grid is 88 x 104 x 40 voxels
of 2 x 2 x 4 mm, centred on (0, -18, 4) mm MNI: no voxel centre lies on the midline, every voxel has a side.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

CENTRE_MM = (0.0, -18.0, 4.0)
"""Middle of the grid in MNI millimetres; with the default shape it holds the whole ICBM152 brain."""


@dataclass(frozen=True)
class Grid:
    """A regular RAS+ grid: shape in voxels, edge lengths in mm, centred on `CENTRE_MM`."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def affine(self) -> Affine:
        """Voxel index to MNI millimetres, (4, 4)."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = np.array(CENTRE_MM) - np.array(self.spacing_mm) * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(np.prod(self.spacing_mm)) / 1000

    def holds(self, shape: tuple[int, ...], affine: Affine) -> bool:
        """True when a volume of this shape and affine lies on the grid already, to a hundredth of a mm."""
        return tuple(shape) == tuple(self.shape) and bool(np.abs(affine - self.affine).max() < 0.01)


def resample(
    data: Float32, affine: Affine, grid: Grid, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Float32:
    """Sample an image on the grid with MONAI; what lies outside the image is 0.

    Axes that get coarser are smoothed first, so that no slice is lost between two of the grid's.

    Args:
        data: (X, Y, Z), RAS+.
        affine: its voxel index to MNI millimetres, the registration included.
        grid: where to.
        mode: how to interpolate; nearest is for labels and is not smoothed.

    Returns:
        `grid.shape`, float32; the input itself when it lies on the grid already.
    """
    if grid.holds(data.shape, affine):
        return data
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import SpatialResample
    from scipy import ndimage

    if mode == "bilinear":
        data = ndimage.gaussian_filter(data, _smoothing(affine, grid), truncate=3)
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(data))[None], affine=torch.from_numpy(affine))
    sample = SpatialResample(mode=mode, padding_mode="zeros", align_corners=True, dtype=np.float32)
    placed: Any = sample(image, dst_affine=torch.from_numpy(grid.affine), spatial_size=grid.shape)
    values: Float32 = placed.as_tensor()[0].numpy()
    return values


def _smoothing(affine: Affine, grid: Grid) -> npt.NDArray[np.float64]:
    """Gaussian whose full width at half maximum makes up the difference in voxel size, in source voxels."""
    steps = np.abs(np.linalg.inv(affine[:3, :3]) @ np.diag(grid.spacing_mm))
    ratio = np.linalg.norm(steps, axis=1)
    sigma: npt.NDArray[np.float64] = np.sqrt(np.maximum(ratio**2 - 1, 0)) * 0.4247
    return sigma


def pour(index: npt.NDArray[np.int64], affine: Affine, grid: Grid) -> Float32:
    """Give every voxel of the grid the share of it that the source's voxels fill; the total volume is kept.

    A lesion smaller than a voxel leaves its trace, where nearest-voxel sampling would lose it. Along shared
    axes the overlap is exact; of a turned source each voxel is split into parts at most half as wide as the
    grid's voxels, and each part goes to the voxel that holds its centre.

    Args:
        index: (N, 3) filled voxels of the source.
        affine: its voxel index to MNI millimetres, the registration included.
        grid: where to.

    Returns:
        `grid.shape`, 0 to 1; what lies outside the grid is dropped.
    """
    if len(index) == 0:
        return np.zeros(grid.shape, np.float32)
    to_grid = np.linalg.inv(grid.affine) @ affine
    turned = np.abs(to_grid[:3, :3] - np.diag(np.diag(to_grid)[:3])).max() > 1e-4
    return _pour_parts(index, affine, to_grid, grid) if turned else _pour_exactly(index, to_grid, grid)


def _pour_exactly(index: npt.NDArray[np.int64], to_grid: Affine, grid: Grid) -> Float32:
    first = index.min(axis=0)
    filled = np.zeros(index.max(axis=0) - first + 1, np.float32)
    filled[tuple((index - first).T)] = 1
    for axis in range(3):
        centres = (np.arange(filled.shape[axis]) + first[axis]) * to_grid[axis, axis] + to_grid[axis, 3]
        half = abs(to_grid[axis, axis]) / 2
        cells = np.arange(grid.shape[axis])[:, None]
        overlap = np.minimum(cells + 0.5, centres + half) - np.maximum(cells - 0.5, centres - half)
        filled = np.moveaxis(np.tensordot(overlap.clip(0).astype(np.float32), filled, (1, axis)), 0, axis)
    shares: Float32 = np.minimum(filled, 1)
    return shares


def _pour_parts(index: npt.NDArray[np.int64], affine: Affine, to_grid: Affine, grid: Grid) -> Float32:
    parts = np.ceil(2 * np.linalg.norm(affine[:3, :3], axis=0) / min(grid.spacing_mm) - 1e-3).clip(2)
    steps = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts], indexing="ij"), -1)
    centres = index @ to_grid[:3, :3].T + (to_grid[:3, 3] + 0.5)
    share = abs(np.linalg.det(to_grid[:3, :3])) / np.prod(parts)
    total = np.zeros(int(np.prod(grid.shape)), np.int64)
    for step in steps.reshape(-1, 3):
        place = np.floor(centres + to_grid[:3, :3] @ step).astype(np.int64)
        inside = ((place >= 0) & (place < grid.shape)).all(axis=1)
        np.add.at(total, np.ravel_multi_index(tuple(place[inside].T), grid.shape), 1)
    shares: Float32 = np.minimum(total.reshape(grid.shape) * share, 1).astype(np.float32)
    return shares


def filled_voxels(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Indices of the True voxels, (N, 3); quick for the axis order in which NIfTI files are stored."""
    if mask.flags.f_contiguous:
        return np.argwhere(mask.T)[:, ::-1]
    return np.argwhere(mask)
