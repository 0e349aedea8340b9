"""Three real FLAIR planes as one small image each, with what somebody painted over them taken out.

The derived SOOP set shows each patient's FLAIR as one PNG: axial, sagittal and coronal slice side by side,
and the expert's lesion painted over in translucent red. The paint would hand the answer to the network, so
every painted pixel and its neighbours become 0; what remains is real signal, 1 to 255, and 0 is nothing.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from willis.errors import StudyError
from willis.imaging.shards import NUM_PLANES, PLANE_SIZE

COLUMNS = ((0, 157), (157, 346), (346, 503))
"""Axial, sagittal and coronal slice: first column and the one after the last."""
NUM_ROWS = 189
MAX_FILE_MB = 4.0
PAINT_MARGIN = 8
"""How much redder than green a pixel of the grey image may be (PNG values) before it counts as painted."""
GROW_PIXELS = 2

UInt8 = npt.NDArray[np.uint8]


def read_planes(path: Path) -> UInt8:
    """Read one PNG into three squares.

    Args:
        path: an RGB PNG of at least 503 columns and exactly 189 rows; further columns are not read.

    Returns:
        (3, 96, 96): axial, sagittal, coronal; rows run downwards as in the picture.

    Raises:
        StudyError: the file is no such picture.
    """
    picture = _open(path)
    painted = _painted(picture)
    grey = np.where(painted, 0, picture.mean(axis=2))
    return np.stack([_shrink(grey[:, a:b], painted[:, a:b]) for a, b in COLUMNS])


def _open(path: Path) -> npt.NDArray[np.float32]:
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size > MAX_FILE_MB * 1e6:
            raise StudyError(f"{path.name} has {path.stat().st_size} bytes; a picture of planes has < 4 MB")
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
            if height != NUM_ROWS or not COLUMNS[-1][1] <= width <= 4 * COLUMNS[-1][1]:
                raise StudyError(
                    f"{path.name} is {width} x {height} pixels; planes are 503 columns or more by 189 rows"
                )
            pixels = np.asarray(image.convert("RGB"), np.float32)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise StudyError(f"{path.name} is not a readable PNG: {error}") from None
    return pixels[:, : COLUMNS[-1][1]]


def _painted(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    red, green, blue = np.moveaxis(picture, 2, 0)
    coloured = (np.maximum(red, np.maximum(green, blue)) - np.minimum(green, blue)) > PAINT_MARGIN
    grown: npt.NDArray[np.bool_] = ndimage.binary_dilation(coloured, np.ones((3, 3)), iterations=GROW_PIXELS)
    return grown


def _shrink(grey: npt.NDArray[np.float64], painted: npt.NDArray[np.bool_]) -> UInt8:
    """Average what is real in each of 96 x 96 cells of the square around the plane; painted cells are 0."""
    size = NUM_ROWS
    square, weight = np.zeros((size, size)), np.zeros((size, size))
    left = (size - grey.shape[1]) // 2
    square[:, left : left + grey.shape[1]] = grey
    weight[:, left : left + grey.shape[1]] = ~painted
    edges = (np.arange(PLANE_SIZE) * size) // PLANE_SIZE
    total = _sum_cells(square, edges)
    real = _sum_cells(weight, edges)
    whole = _sum_cells(np.ones((size, size)), edges)
    mean = np.divide(total, real, out=np.zeros_like(total), where=real > 0)
    return np.where(real > 0.5 * whole, np.clip(np.rint(mean), 0, 255), 0).astype(np.uint8)


def _sum_cells(values: npt.NDArray[np.float64], edges: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    summed: npt.NDArray[np.float64] = np.add.reduceat(np.add.reduceat(values, edges, axis=0), edges, axis=1)
    return summed


assert len(COLUMNS) == NUM_PLANES
