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


def pour(mask: npt.NDArray[np.bool_], affine: Affine, grid: Grid) -> Float32:
    """Give every voxel of the grid the share of it that the mask fills; the total volume is kept.

    Each source voxel is split into parts at most half as wide as the grid's voxels, and each part goes to the
    voxel that holds its centre. A lesion smaller than a voxel therefore leaves its trace, where nearest-voxel
    sampling would lose it.

    Args:
        mask: (X, Y, Z), RAS+.
        affine: its voxel index to MNI millimetres, the registration included.
        grid: where to.

    Returns:
        `grid.shape`, 0 to 1; what lies outside the grid is dropped.
    """
    if grid.holds(mask.shape, affine):
        return mask.astype(np.float32)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    parts = np.maximum(2, np.ceil(2 * spacing / min(grid.spacing_mm))).astype(int)
    steps = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts], indexing="ij"), -1)
    to_grid = np.linalg.inv(grid.affine) @ affine
    centres = np.argwhere(mask) @ to_grid[:3, :3].T + to_grid[:3, 3]
    share = abs(np.linalg.det(to_grid[:3, :3])) / np.prod(parts)
    total = np.zeros(int(np.prod(grid.shape)), np.float64)
    for step in steps.reshape(-1, 3):
        index = np.floor(centres + to_grid[:3, :3] @ step + 0.5).astype(np.int64)
        inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(index[inside].T), grid.shape)
        total += np.bincount(flat, minlength=total.size) * share
    return np.minimum(total, 1).reshape(grid.shape).astype(np.float32)
