"""Reading one volume: every way in which a file can be bad, what is normal, and the axis order."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from willis.cohort.schema import Sequence
from willis.errors import StudyError
from willis.imaging.volume import read_volume

SHAPE = (5, 6, 7)
AFFINE = np.diag([2.0, 2.5, 3.0, 1.0])
COPY_AGAIN = "copy it again from its source"


def ramp(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """1, 2, 3, ... in file order: every voxel differs from every other."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape, order="F")


def header_of(shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> nib.Nifti1Header:
    """A sound header with an sform; tests break it field by field."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_zooms((2.0, 2.5, 3.0, *[1.0] * (len(shape) - 3))[: len(shape)])
    header.set_sform(AFFINE, 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header


def write_raw(path: Path, data: np.ndarray, header: nib.Nifti1Header | None = None) -> Path:
    """Write header and voxels byte by byte, so that nothing is put right on the way."""
    header = header_of(data.shape, data.dtype.type) if header is None else header
    content = header.binaryblock + bytes(4) + data.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refusal(path: Path, sequence: Sequence = "dwi", max_volume_mb: float = 512) -> str:
    """What the refusal of this file says; it always names the file."""
    with pytest.raises(StudyError) as caught:
        read_volume(path, sequence, max_volume_mb)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a_dwi.nii", "a_dwi.nii.gz"])
def test_a_sound_file_is_read_value_for_value(tmp_path: Path, name: str) -> None:
    volume = read_volume(write_raw(tmp_path / name, ramp()), "dwi")
    np.testing.assert_array_equal(volume.data, ramp())
    assert volume.data.dtype == np.float32 and volume.spacing_mm == (2.0, 2.5, 3.0)
    assert volume.voxel_ml == pytest.approx(0.015)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_stored_numbers_are_scaled_by_slope_and_intercept(tmp_path: Path, dtype: Any) -> None:
    header = header_of(dtype=dtype)
    header["scl_slope"], header["scl_inter"] = 0.5, 10
    volume = read_volume(write_raw(tmp_path / "a.nii", ramp().astype(dtype), header), "dwi")
    np.testing.assert_allclose(volume.data, ramp() * 0.5 + 10)


def test_a_scale_without_a_number_is_refused(tmp_path: Path) -> None:
    header = header_of()
    header["scl_slope"], header["scl_inter"] = 1, np.nan
    message = refusal(write_raw(tmp_path / "a.nii", ramp(), header))
    assert "a scale that cannot be applied" in message and "nan" in message and COPY_AGAIN in message


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    swapped = nib.Nifti1Image(ramp(), None, image.header.as_byteswapped(">"))
    nib.save(swapped, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", "dwi").data, ramp())


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_raw(tmp_path / "a.nii.gz", np.random.default_rng(1).random((8, 8, 8), dtype=np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refusal(path)
    assert "ends early or is damaged" in message and COPY_AGAIN in message


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.nii.gz", np.random.default_rng(1).random((8, 8, 8), dtype=np.float32))
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # inside the checksum
    path.write_bytes(bytes(content))
    assert "ends early or is damaged" in refusal(path)


def test_a_plain_file_without_its_last_voxels_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.nii", ramp())
    path.write_bytes(path.read_bytes()[:-100])
    assert f"holds 740 bytes of voxels; its header promises 840: {COPY_AGAIN}" in refusal(path)


def test_a_file_that_ends_inside_its_header_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.nii", ramp())
    path.write_bytes(path.read_bytes()[:200])
    assert f"ends after 200 bytes; its header alone has 348: {COPY_AGAIN}" in refusal(path)


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"", b""),
        (b"PK\x03\x04 a zip", b"PK\x03\x04"),
        (b"GIF89a" * 100, b"GIF8"),
        (b"DICM" * 200, b"DICM"),
        (b"<html>404</html>" * 99, b"<htm"),
        (gzip.compress(b"hello" * 500), b"hell"),
    ],
)
def test_what_is_no_nifti_is_refused_with_its_first_bytes(
    tmp_path: Path, content: bytes, start: bytes
) -> None:
    path = tmp_path / "a_dwi.nii.gz"
    path.write_bytes(content)
    message = refusal(path)
    assert f"starts with {start!r}; a NIfTI file starts with its header size, 348" in message
    assert COPY_AGAIN in message and "willis cohort import dicom" in message


def test_two_bytes_of_gzip_are_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"\x1f\x8b")
    assert "ends early or is damaged" in refusal(path)


def test_a_header_whose_voxels_lie_in_another_file_is_refused(tmp_path: Path) -> None:
    header = header_of()
    header["magic"] = b"ni1"
    message = refusal(write_raw(tmp_path / "a.nii", ramp(), header))
    assert "b'ni1" in message and "only single-file NIfTI" in message


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    assert f"does not exist in {tmp_path}" in refusal(tmp_path / "a_dwi.nii.gz")


@pytest.mark.parametrize("shape", [(5, 6), (20, 24, 1), (20, 24, 2)])
def test_a_plane_is_no_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    message = refusal(write_raw(tmp_path / "a.nii", ramp(shape)))
    assert f"has shape {shape}; a volume has three axes of >= 4 voxels" in message
    assert "give the whole series" in message


def test_a_series_of_volumes_is_refused_with_its_shape(tmp_path: Path) -> None:
    message = refusal(write_raw(tmp_path / "a.nii", ramp((5, 6, 7, 3))))
    assert "4-D with shape (5, 6, 7, 3); one file must hold one 3-D volume" in message
    assert "to a file of its own" in message


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1)])
def test_a_last_axis_of_one_is_dropped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = read_volume(write_raw(tmp_path / "a.nii", ramp(shape)), "dwi")
    np.testing.assert_array_equal(volume.data, ramp())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_no_number_is_refused_with_the_share(tmp_path: Path, bad: float) -> None:
    data = ramp()
    data[2, 3, 4] = bad  # one of 210
    message = refusal(write_raw(tmp_path / "a.nii", data))
    assert "NaN or infinity in 0.48% of its voxels; all must be finite" in message
    assert "export it again" in message


def test_values_beyond_float32_are_refused_and_not_clipped(tmp_path: Path) -> None:
    message = refusal(write_raw(tmp_path / "a.nii", np.full(SHAPE, 1e300)))
    assert "NaN or infinity in 100.00%" in message


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_is_refused_with_its_value(tmp_path: Path, value: float) -> None:
    path = write_raw(tmp_path / "a.nii", np.full(SHAPE, value, np.float32))
    assert f"holds {value:g} in every voxel; an image must vary: export it again" in refusal(path)


def test_an_empty_lesion_mask_is_no_fault(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a_mask.nii", np.zeros(SHAPE, np.uint8))
    assert not read_volume(path, "lesion").data.any()


@pytest.mark.parametrize("mask", [ramp() / 210, ramp() - 2], ids=["shares", "negative"])
def test_a_mask_of_other_numbers_than_labels_is_refused(tmp_path: Path, mask: np.ndarray) -> None:
    path = write_raw(tmp_path / "a_mask.nii", mask)
    assert "lesion mask with values other than 0 and whole positive numbers" in refusal(path, "lesion")


def test_a_magnitude_image_with_large_negative_values_is_refused(tmp_path: Path) -> None:
    message = refusal(write_raw(tmp_path / "a.nii", ramp() - 100))
    assert "from -99 to 110; a magnitude image is not negative" in message


@pytest.mark.parametrize("both_forms", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("edge", [0.0, -2.0, 0.05, 25.0, np.nan])
def test_a_spacing_that_no_scanner_has_is_refused_with_axis_and_rule(
    tmp_path: Path, edge: float, axis: int, both_forms: bool
) -> None:
    header = header_of()
    if both_forms:
        header.set_qform(AFFINE, 1)
    header["pixdim"][1 + axis] = edge
    message = refusal(write_raw(tmp_path / "a.nii", ramp(), header))
    assert f"spacing_mm[{axis}] is {edge:g}; every edge must be 0.2 to 12 mm" in message
    assert "set the scanner's own spacing" in message


def test_an_affine_of_zero_spacing_is_refused(tmp_path: Path) -> None:
    header = header_of()
    header["srow_y"] = 0
    assert "squeezes the volume flat" in refusal(write_raw(tmp_path / "a.nii", ramp(), header))


@pytest.mark.parametrize(
    ("shape", "size"), [((2000, 2000, 1000), "8000 MB"), ((30000, 30000, 30000), "54000000 MB")]
)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_by_its_header_alone(
    tmp_path: Path, shape: tuple[int, ...], size: str
) -> None:
    # no voxel follows the header: whoever tried to unpack them would complain of a truncated file instead
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header_of(shape, np.int16).binaryblock + bytes(4)))
    message = refusal(path)
    assert f"unpacks to {size} (shape {shape})" in message
    assert "at most 512 MB" in message and "ingest.max_volume_mb" in message


@pytest.mark.parametrize(
    ("header", "axes", "message"),
    [
        (nib.Nifti1Header(), (32767,) * 5, "one file must hold one 3-D volume"),
        (nib.Nifti2Header(), (1 << 40,) * 3, "at most 512 MB are read"),
    ],
)
def test_axes_whose_product_leaves_64_bits_unpack_nothing(
    tmp_path: Path, header: Any, axes: tuple[int, ...], message: str
) -> None:
    header["dim"][: 1 + len(axes)] = [len(axes), *axes]
    header["magic"], header["vox_offset"] = header.single_magic, header.sizeof_hdr + 4
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    assert message in refusal(path)


def test_the_limit_is_what_the_parameter_says(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.nii", ramp((100, 100, 30)))  # 1.2 MB
    assert "unpacks to 1 MB" in refusal(path, max_volume_mb=1.1)
    assert read_volume(path, "dwi", 1.3).data.shape == (100, 100, 30)


def test_a_file_that_unpacks_to_more_than_its_header_says_is_not_unpacked_further(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    content = header_of().binaryblock + bytes(4) + ramp().tobytes(order="F") + bytes(50_000_000)
    path.write_bytes(gzip.compress(content)[:-8])  # whoever unpacked to the end would miss the checksum
    assert "unpacks to more than the 840 bytes that its header promises" in refusal(path)


@pytest.mark.parametrize("offset", [0, 100, 1 << 30])
def test_voxels_at_an_impossible_place_are_refused(tmp_path: Path, offset: int) -> None:
    header = header_of()
    header["vox_offset"] = offset
    assert f"at byte {offset}" in refusal(write_raw(tmp_path / "a.nii", ramp(), header))


@pytest.mark.parametrize(
    ("field", "value"), [("vox_offset", np.nan), ("vox_offset", np.inf), ("datatype", 77)]
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, field: str, value: float) -> None:
    header = header_of()
    header[field] = value
    message = refusal(write_raw(tmp_path / "a.nii", ramp(), header))
    assert "contradicts itself" in message and COPY_AGAIN in message


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_that_are_no_single_numbers_are_refused(tmp_path: Path, dtype: Any) -> None:
    message = refusal(write_raw(tmp_path / "a.nii", np.zeros(SHAPE, dtype), header_of(dtype=dtype)))
    assert "must be integers or floats" in message


# the far corner of the mirrored form lies at +8 mm by one and at -8 mm by the other
@pytest.mark.parametrize(("first_axis", "origin", "apart"), [(2.0, 3.0, "3.0"), (-2.0, 0.0, "16.0")])
def test_forms_that_contradict_each_other_are_refused_with_the_distance(
    tmp_path: Path, first_axis: float, origin: float, apart: str
) -> None:
    other = np.diag([first_axis, 2.5, 3.0, 1.0])
    other[0, 3] = origin
    header = header_of()
    header.set_qform(other, 1)
    message = refusal(write_raw(tmp_path / "a.nii", ramp(), header))
    assert f"qform and sform put a corner {apart} mm apart; they may differ by 0.5 mm" in message
    assert "keep the one that is right" in message


def test_forms_that_differ_by_rounding_are_accepted(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 0.4
    header = header_of()
    header.set_qform(moved, 1)
    volume = read_volume(write_raw(tmp_path / "a.nii", ramp(), header), "dwi")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_a_file_with_neither_form_is_refused(tmp_path: Path) -> None:
    header = header_of()
    header["sform_code"] = header["qform_code"] = 0
    message = refusal(write_raw(tmp_path / "a.nii", ramp(), header))
    assert "neither qform nor sform; left and right cannot be told apart" in message
    assert "convert it again from DICOM" in message


@pytest.mark.parametrize("unset", [False, True])
def test_a_qform_alone_is_enough_even_where_its_handedness_is_not_written(
    tmp_path: Path, unset: bool
) -> None:
    header = header_of()
    header.set_qform(np.diag([-2.0, -2.5, 3.0, 1.0]), 1)
    header["sform_code"] = 0
    if unset:
        header["pixdim"][0] = 0  # to be read as 1, says the standard
    volume = read_volume(write_raw(tmp_path / "a.nii", ramp(), header), "dwi")
    np.testing.assert_array_equal(volume.data, ramp()[::-1, ::-1])


def test_a_left_handed_qform_is_read_as_such(tmp_path: Path) -> None:
    header = header_of()
    header.set_qform(np.diag([-2.0, 2.5, 3.0, 1.0]), 1)
    header["sform_code"] = 0
    volume = read_volume(write_raw(tmp_path / "a.nii", ramp(), header), "dwi")
    np.testing.assert_array_equal(volume.data, ramp()[::-1])


@pytest.mark.parametrize(
    "axes", ["RAS", "LAS", "LPS", "PIR", "ASL", "SAR", "IPL", "RPI", "ASR", "SLP", "PSR"]
)
def test_every_axis_order_becomes_ras_with_each_voxel_where_it_was(tmp_path: Path, axes: str) -> None:
    affine = np.zeros((4, 4))
    affine[:, 3] = [-11, 13, -17, 1]
    for column, letter in enumerate(axes):
        row, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[letter]
        affine[row, column] = sign * (2.0, 2.5, 3.0)[column]
    header = header_of()
    header.set_sform(affine, 1)
    volume = read_volume(write_raw(tmp_path / "a.nii", ramp(), header), "dwi")
    edges = np.diag(volume.affine)[:3]
    assert (edges > 0).all()
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag(edges), atol=1e-5)
    np.testing.assert_allclose(places(volume.data, volume.affine), places(ramp(), affine), atol=1e-4)


def places(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where each voxel lies in mm, in the order of their values."""
    index = np.stack(np.unravel_index(np.argsort(data, axis=None), data.shape), axis=1)
    return index @ affine[:3, :3].T + affine[:3, 3]
