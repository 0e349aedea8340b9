"""The canonical grid in MNI space, and the two roads onto it.

Arrays are (X, Y, Z) in RAS+ (X grows towards the patient's right). The default grid is 88 x 104 x 40 voxels
of 2 x 2 x 4 mm, centred on (0, -18, 4) mm MNI: no voxel centre lies on the midline, every voxel has a side.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CENTRE_MM = (0.0, -18.0, 4.0)
"""Middle of the grid in MNI millimetres; with the default shape it holds the whole ICBM152 brain."""


@dataclass(frozen=True)
class Grid:
    """A regular RAS+ grid: shape in voxels, edge lengths in mm, centred on `CENTRE_MM`."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Voxel index to MNI millimetres, (4, 4)."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = np.array(CENTRE_MM) - np.array(self.spacing_mm) * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(np.prod(self.spacing_mm)) / 1000

    def holds(self, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> bool:
        """True when a volume of this shape and affine lies on the grid already, to a hundredth of a mm."""
        return tuple(shape) == tuple(self.shape) and bool(np.abs(affine - self.affine).max() < 0.01)
