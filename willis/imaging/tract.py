"""How much of the corticospinal tract an infarct takes: the strongest single place an infarct can have.

The tract's lesion load predicts the motor outcome beyond lesion volume (Zhu et al., Stroke 41:910, 2010; Feng
et al., Ann Neurol 78:860, 2015). Here it is a tube on each side through landmarks of MNI space: an
approximation, and drawn apart from that of the synthetic cohort, whose outcomes depend on a tract of its own.
"""

import numpy as np
import numpy.typing as npt

_COURSE_MM = np.array(
    [
        (4, -30, -50, 4),  # medulla
        (5, -26, -35, 4),  # pons
        (10, -20, -20, 5),
        (15, -18, -10, 5),  # cerebral peduncle
        (20, -14, 0, 5),
        (23, -16, 8, 5),  # posterior limb of the internal capsule
        (25, -20, 16, 5),
        (25, -22, 24, 6),  # corona radiata
        (25, -23, 32, 7),
        (24, -24, 40, 8),
        (23, -25, 50, 10),
        (22, -26, 60, 12),  # precentral gyrus
        (20, -27, 70, 12),
    ],
    float,
)
"""Distance from the midline, y, z and radius, from below upwards."""
SLAB_MM = 6.0
"""Height of a cross-section: not less than a usual slice is thick."""

_LOWEST_MM, _HIGHEST_MM = _COURSE_MM[0, 2], _COURSE_MM[-1, 2]
_NUM_SLABS = int((_HIGHEST_MM - _LOWEST_MM) // SLAB_MM)


def corticospinal_share(points_mm: npt.NDArray[np.float64], voxel_ml: float) -> float:
    """Return the largest share of a cross-section of either tract that an infarct takes, 0 to 1.

    Args:
        points_mm: (N, 3) centres of the infarct's voxels in MNI space.
        voxel_ml: volume of one.
    """
    x, y, z = points_mm.T
    slab = np.floor((z - _LOWEST_MM) / SLAB_MM).astype(int)
    off_axis_mm = np.hypot(np.abs(x) - _course(z, 0), y - _course(z, 1))
    inside = (slab >= 0) & (slab < _NUM_SLABS) & (off_axis_mm < _course(z, 3))
    taken_ml = voxel_ml * np.bincount(slab[inside] + _NUM_SLABS * (x[inside] > 0), minlength=2 * _NUM_SLABS)
    middle = _LOWEST_MM + SLAB_MM * (np.arange(_NUM_SLABS) + 0.5)
    whole_ml = np.pi * _course(middle, 3) ** 2 * SLAB_MM / 1e3
    return float(min(1.0, (taken_ml / np.tile(whole_ml, 2)).max()))


def _course(z: npt.NDArray[np.float64], column: int) -> npt.NDArray[np.float64]:
    """Read the course at some heights."""
    read: npt.NDArray[np.float64] = np.interp(z, _COURSE_MM[:, 2], _COURSE_MM[:, column])
    return read
