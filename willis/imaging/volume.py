"""Reading one NIfTI file without trusting it.

Nothing is unpacked before the header says how large it will be, and never more than the header says. What is
returned is 3-D, finite, float32 and RAS+ (X grows towards the patient's right, Y to the front, Z upwards).
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt

from willis.cohort.schema import Sequence
from willis.errors import StudyError

MIN_SPACING_MM, MAX_SPACING_MM = 0.2, 12.0
MIN_VOXELS_PER_AXIS = 4
FORM_TOLERANCE_MM = 0.5
GRID_TOLERANCE_MM = 0.1
COPY_AGAIN = "copy it again from its source"
HEADER_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}

Float32 = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """One sequence of one study: (X, Y, Z) float32 in RAS+ order, and voxel index to millimetres (RAS+)."""

    data: Float32
    affine: Affine
    name: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def same_grid(self, other: "Volume") -> bool:
        """True when the other volume has the same voxels, to a tenth of a millimetre."""
        return self.data.shape == other.data.shape and self.shift_mm(other) < GRID_TOLERANCE_MM

    def shift_mm(self, other: "Volume") -> float:
        """How far apart the affines put the corner on which they agree least."""
        return _max_corner_shift(self.affine, other.affine, self.data.shape)


def read_volume(path: Path, sequence: Sequence, max_volume_mb: float = 512) -> Volume:
    """Read and check one file.

    Args:
        path: a .nii or .nii.gz file.
        sequence: what it holds; decides which values are plausible.
        max_volume_mb: a file that unpacks to more is refused before it is unpacked.

    Returns:
        The volume in RAS+ order; a last axis of 1 is dropped.

    Raises:
        StudyError: the file breaks a rule; the message says value, rule and file.
    """
    header, values = _unpack(path, max_volume_mb)
    affine = _affine(header, path.name)
    _check_spacing(np.linalg.norm(affine[:3, :3], axis=0), path.name)
    _check_values(values.ravel(order="K"), sequence, path.name)
    data, affine = _to_ras(values, affine, path.name)
    return Volume(data, affine, path.name)


def _unpack(path: Path, max_volume_mb: float) -> tuple[Any, Float32]:
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if zipped else raw)
            header = _header(stream, path.name)
            return header, _values(stream, header, path.name, max_volume_mb)
    except FileNotFoundError:
        raise StudyError(f"{path.name} does not exist in {path.parent}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StudyError(f"{path.name} ends early or is damaged ({error}); {COPY_AGAIN}") from None
    except OSError as error:
        raise StudyError(f"{path.name} cannot be read: {error}") from None


def _header(stream: IO[bytes], name: str) -> Any:
    size_field = stream.read(4)
    sizes = {int.from_bytes(size_field, "little"), int.from_bytes(size_field, "big")} & set(HEADER_SIZES)
    if len(size_field) < 4 or not sizes:
        raise StudyError(
            f"{name} starts with {size_field!r}; a NIfTI file starts with its header size, 348: "
            f"{COPY_AGAIN}, or bring DICOM in by `willis cohort import dicom`"
        )
    size = sizes.pop()
    block = size_field + stream.read(size - 4)
    if len(block) < size:
        raise StudyError(f"{name} ends after {len(block)} bytes; its header alone has {size}: {COPY_AGAIN}")
    header = HEADER_SIZES[size](binaryblock=block, check=False)
    if not bytes(header["magic"]).startswith(b"n+"):
        raise StudyError(
            f"{name} has magic {bytes(header['magic'])!r}; only single-file NIfTI (n+1, n+2) is read"
        )
    return header


def _values(stream: IO[bytes], header: Any, name: str, max_volume_mb: float) -> Float32:
    shape, dtype, offset = _layout(header, name)
    spatial = _spatial(shape, name)
    num_bytes = math.prod(spatial) * dtype.itemsize
    if num_bytes > max_volume_mb * 1e6:
        raise StudyError(
            f"{name} unpacks to {num_bytes / 1e6:.0f} MB (shape {shape}); "
            f"at most {max_volume_mb:g} MB are read (params.yaml: ingest.max_volume_mb)"
        )
    slope, intercept = _scale(header, name)
    stream.read(offset - header.sizeof_hdr)
    buffer = stream.read(num_bytes)
    if len(buffer) < num_bytes:
        raise StudyError(
            f"{name} holds {len(buffer)} bytes of voxels; its header promises {num_bytes}: {COPY_AGAIN}"
        )
    if stream.read(1):
        raise StudyError(
            f"{name} unpacks to more than the {num_bytes} bytes that its header promises; {COPY_AGAIN}"
        )
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        values = np.frombuffer(buffer, dtype).reshape(spatial, order="F").astype(np.float32)
        if (slope, intercept) != (1.0, 0.0):
            values = values * np.float32(slope) + np.float32(intercept)
    return values


def _scale(header: Any, name: str) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError as error:
        raise StudyError(f"{name} has a scale that cannot be applied: {error}; {COPY_AGAIN}") from None
    return (1.0, 0.0) if slope is None else (slope, intercept or 0.0)


def _layout(header: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset())
    except (nib.spatialimages.HeaderDataError, ValueError, OverflowError, KeyError) as error:
        raise StudyError(f"{name} has a header that contradicts itself: {error}; {COPY_AGAIN}") from None
    if dtype.kind not in "iuf":
        raise StudyError(f"{name} holds {dtype} voxels; they must be integers or floats")
    if min(shape, default=0) < 1:
        raise StudyError(f"{name} has shape {shape}; every axis must hold at least one voxel")
    if not header.sizeof_hdr <= offset <= 1 << 24:
        raise StudyError(f"{name} puts its voxels at byte {offset}; that is no place in a NIfTI file")
    return shape, dtype, offset


def _spatial(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    kept = shape
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    if len(kept) > 3:
        raise StudyError(
            f"{name} is {len(kept)}-D with shape {shape}; one file must hold one 3-D volume: "
            "write the one that is meant (of diffusion, the trace) to a file of its own"
        )
    if len(kept) < 3 or min(kept) < MIN_VOXELS_PER_AXIS:
        raise StudyError(
            f"{name} has shape {shape}; a volume has three axes of >= {MIN_VOXELS_PER_AXIS} voxels: "
            "give the whole series, not one slice of it"
        )
    return kept


def _affine(header: Any, name: str) -> Affine:
    _check_spacing(np.asarray(header["pixdim"][1:4], np.float64), name)
    if header["pixdim"][0] == 0:  # many writers leave it; the standard reads it as 1
        header["pixdim"][0] = 1
    try:
        qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise StudyError(f"{name} has a qform that is no rotation: {error}") from None
    if qform is None and sform is None:
        raise StudyError(
            f"{name} has neither qform nor sform; left and right cannot be told apart: "
            "convert it again from DICOM, with a tool that writes both"
        )
    if qform is not None and sform is not None:
        shift = _max_corner_shift(qform, sform, header.get_data_shape()[:3])
        if not shift <= FORM_TOLERANCE_MM:
            raise StudyError(
                f"{name}: qform and sform put a corner {shift:.1f} mm apart; "
                f"they may differ by {FORM_TOLERANCE_MM} mm: keep the one that is right in both"
            )
    affine = np.asarray(sform if sform is not None else qform, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise StudyError(f"{name} has an affine that squeezes the volume flat: {affine[:3, :3].tolist()}")
    return affine


def _max_corner_shift(one: Affine, two: Affine, shape: tuple[int, ...]) -> float:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(((one - two) @ homogeneous)[:3], axis=0).max())


def _check_spacing(spacing_mm: npt.NDArray[np.float64], name: str) -> None:
    for axis, edge in enumerate(spacing_mm):
        if not MIN_SPACING_MM <= edge <= MAX_SPACING_MM:
            raise StudyError(
                f"{name}: spacing_mm[{axis}] is {edge:g}; "
                f"every edge must be {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm: "
                "set the scanner's own spacing in the header, or convert it again from DICOM"
            )


def _to_ras(values: Float32, affine: Affine, name: str) -> tuple[Float32, Affine]:
    orientation = nib.orientations.io_orientation(affine)
    if np.isnan(orientation).any():
        raise StudyError(f"{name} has an affine from which no axis order can be read")
    ras = nib.orientations.apply_orientation(values, orientation)
    return ras, affine @ nib.orientations.inv_ornt_aff(orientation, values.shape)


def _check_values(data: Float32, sequence: Sequence, name: str) -> None:
    if not np.isfinite(data.sum(dtype=np.float64)):
        share = 1 - np.isfinite(data).mean()
        raise StudyError(
            f"{name} holds NaN or infinity in {share:.2%} of its voxels; all must be finite: "
            "export it again, with 0 where there is nothing"
        )
    low, high = float(data.min()), float(data.max())
    if sequence == "lesion":
        _check_mask(data, low, name)
    elif low == high:
        raise StudyError(f"{name} holds {low:g} in every voxel; an image must vary: export it again")
    elif sequence != "adc" and (high <= 0 or low < -0.25 * high):
        raise StudyError(f"{name} ranges from {low:g} to {high:g}; a magnitude image is not negative")


def _check_mask(data: Float32, low: float, name: str) -> None:
    inside = data[data != 0]
    if low < 0 or (inside.size and not np.array_equal(inside, np.rint(inside))):
        raise StudyError(f"{name} is a lesion mask with values other than 0 and whole positive numbers")
