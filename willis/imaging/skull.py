"""Brain or head: decide by measurement whether a skull is there, and take it off."""

import numpy as np
import numpy.typing as npt

from willis.errors import StudyError
from willis.imaging.volume import Volume

MIN_BRAIN_ML, MAX_BRAIN_ML = 400.0, 2400.0
"""Volumes that a brain with its spaces can have; a head has 3 to 5 litres, a field of view of air more."""
MIN_ZERO_SHARE = 0.3
"""A stripped volume is exactly zero (or one constant) at least in this share of its box."""

Bool = npt.NDArray[np.bool_]


def brain_mask(volume: Volume) -> tuple[Bool, bool]:
    """Find the brain.

    Args:
        volume: the sequence that the others follow: DWI, or the one there is.

    Returns:
        (X, Y, Z) mask without holes, and whether a skull had to be taken off.

    Raises:
        StudyError: what is left after stripping has no brain's volume.
    """
    mask, stripped = _signal(volume), is_stripped(volume)
    if not stripped:
        mask = _strip(volume)
    size_ml = float(mask.sum()) * volume.voxel_ml
    if not MIN_BRAIN_ML <= size_ml <= MAX_BRAIN_ML:
        raise StudyError(
            f"{volume.name}: the brain found in it has {size_ml:.0f} ml; "
            f"a brain has {MIN_BRAIN_ML:.0f} to {MAX_BRAIN_ML:.0f}: strip the skull before import"
        )
    return mask, not stripped


def is_stripped(volume: Volume) -> bool:
    """True when a large part of the box is one constant and what is not has at most a brain's volume."""
    share = 1 - _signal_share(volume)
    signal_ml = (1 - share) * volume.data.size * volume.voxel_ml
    return share >= MIN_ZERO_SHARE and signal_ml <= MAX_BRAIN_ML


def _signal_share(volume: Volume) -> float:
    return float(np.count_nonzero(volume.data != _background(volume))) / volume.data.size


def _background(volume: Volume) -> float:
    """The constant outside the brain: the value that most of the box's eight corners have."""
    corners = volume.data[np.ix_((0, -1), (0, -1), (0, -1))]
    values, counts = np.unique(corners, return_counts=True)
    return float(values[counts.argmax()])


def _signal(volume: Volume) -> Bool:
    from scipy import ndimage

    labels, count = ndimage.label(volume.data != _background(volume))
    if count == 0:
        return np.zeros(volume.data.shape, bool)
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    filled: Bool = ndimage.binary_fill_holes(labels == largest)
    return filled


def _strip(volume: Volume) -> Bool:
    from dipy.segment.mask import median_otsu
    from scipy import ndimage

    _, mask = median_otsu(np.maximum(volume.data, 0), median_radius=2, numpass=2)
    labels, count = ndimage.label(ndimage.binary_opening(mask, iterations=2))
    if count == 0:
        return np.zeros(volume.data.shape, bool)
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    grown = ndimage.binary_dilation(labels == largest, iterations=2) & mask
    filled: Bool = ndimage.binary_fill_holes(grown)
    return filled
