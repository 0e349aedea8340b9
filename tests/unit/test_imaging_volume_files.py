"""Reading one volume: every way in which a file can be bad, the axis order, and the unit of ADC."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from willis.cohort.bids import StudyFiles
from willis.cohort.schema import Sequence
from willis.errors import StudyError
from willis.imaging.prepare import adc_unit, prepare_study
from willis.imaging.volume import read_volume
from willis.params import IngestParams

SHAPE = (5, 6, 7)
AFFINE = np.diag([2.0, 2.5, 3.0, 1.0])


def ramp(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """1, 2, 3, ... in file order: every voxel differs from every other."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape, order="F")


def header_of(shape: tuple[int, ...], dtype: type = np.float32) -> nib.Nifti1Header:
    """A sound header with an sform; tests break it field by field."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_zooms((2.0, 2.5, 3.0, *[1.0] * (len(shape) - 3))[: len(shape)])
    header.set_sform(AFFINE, 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header


def write(path: Path, data: np.ndarray, header: nib.Nifti1Header | None = None) -> Path:
    """Write header and voxels byte by byte, so that nothing is put right on the way."""
    header = header_of(data.shape, data.dtype.type) if header is None else header
    content = header.binaryblock + bytes(4) + data.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refusal(path: Path, sequence: Sequence = "dwi", max_volume_mb: float = 512) -> str:
    """What the refusal of this file says."""
    with pytest.raises(StudyError) as caught:
        read_volume(path, sequence, max_volume_mb)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a_dwi.nii", "a_dwi.nii.gz"])
def test_a_sound_file_is_read_value_for_value(tmp_path: Path, name: str) -> None:
    volume = read_volume(write(tmp_path / name, ramp()), "dwi")
    np.testing.assert_array_equal(volume.data, ramp())
    assert volume.data.dtype == np.float32 and volume.spacing_mm == (2.0, 2.5, 3.0)
    assert volume.voxel_ml == pytest.approx(0.015)


def test_stored_integers_are_scaled_by_slope_and_intercept(tmp_path: Path) -> None:
    stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE, order="F")
    header = header_of(SHAPE, np.int16)
    header["scl_slope"], header["scl_inter"] = 0.5, 10
    volume = read_volume(write(tmp_path / "a.nii", stored, header), "dwi")
    np.testing.assert_allclose(volume.data, stored * 0.5 + 10)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    swapped = nib.Nifti1Image(ramp(), None, image.header.as_byteswapped(">"))
    nib.save(swapped, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", "dwi").data, ramp())


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, share: float) -> None:
    noise = np.random.default_rng(1).random((8, 8, 8), dtype=np.float32)
    path = write(tmp_path / "a.nii.gz", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "ends early or is damaged" in refusal(path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).random((8, 8, 8), dtype=np.float32)
    path = write(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # inside the checksum
    path.write_bytes(bytes(content))
    assert "ends early or is damaged" in refusal(path)


def test_a_plain_file_without_its_last_voxels_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp())
    path.write_bytes(path.read_bytes()[:-100])
    assert "holds 740 bytes of voxels; its header promises 840" in refusal(path)


def test_a_file_that_ends_inside_its_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp())
    path.write_bytes(path.read_bytes()[:200])
    assert "ends after 200 bytes; its header alone has 348" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"PK\x03\x04 a zip", b"DICM" * 200, b"<html>404</html>" * 99]
)
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    message = refusal(path)
    assert "a NIfTI file starts with its header size, 348" in message or "ends early" in message


def test_a_header_whose_voxels_lie_in_another_file_is_refused(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    header["magic"] = b"ni1"
    assert "b'ni1" in refusal(write(tmp_path / "a.nii", ramp(), header))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "a_dwi.nii.gz")


def test_a_single_slice_is_refused_with_its_shape(tmp_path: Path) -> None:
    assert "(5, 6); a volume has three axes" in refusal(write(tmp_path / "a.nii", ramp((5, 6))))


def test_a_series_of_volumes_is_refused_with_its_shape(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.nii", ramp((5, 6, 7, 3))))
    assert "4-D with shape (5, 6, 7, 3)" in message and "one 3-D volume" in message


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1)])
def test_a_last_axis_of_one_is_dropped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = read_volume(write(tmp_path / "a.nii", ramp(shape)), "dwi")
    np.testing.assert_array_equal(volume.data, ramp(SHAPE))


@pytest.mark.parametrize(("bad", "share"), [(np.nan, "0.48%"), (np.inf, "0.48%"), (-np.inf, "0.48%")])
def test_one_voxel_that_is_no_number_is_refused_with_the_share(
    tmp_path: Path, bad: float, share: str
) -> None:
    data = ramp()
    data[2, 3, 4] = bad  # one of 210
    assert f"NaN or infinity in {share}" in refusal(write(tmp_path / "a.nii", data))


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_is_refused_with_its_value(tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "a.nii", np.full(SHAPE, value, np.float32))
    assert f"holds {value:g} in every voxel; an image must vary" in refusal(path)


def test_an_empty_lesion_mask_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a_mask.nii", np.zeros(SHAPE, np.uint8))
    assert not read_volume(path, "lesion").data.any()


def test_a_mask_of_shares_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a_mask.nii", ramp() / 210)
    assert "values other than 0 and whole positive numbers" in refusal(path, "lesion")


def test_a_magnitude_image_with_large_negative_values_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.nii", ramp() - 100))
    assert "from -99 to 110; a magnitude image is not negative" in message


@pytest.mark.parametrize("edge", [0.0, -2.0, 0.05, 25.0, np.nan])
def test_a_spacing_that_no_scanner_has_is_refused_with_axis_and_rule(tmp_path: Path, edge: float) -> None:
    header = header_of(SHAPE)
    header["pixdim"][2] = edge
    message = refusal(write(tmp_path / "a.nii", ramp(), header))
    assert f"spacing_mm[1] is {edge:g}; every edge must be 0.2 to 12 mm" in message


def test_an_affine_of_zero_spacing_is_refused(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    header["srow_y"] = 0
    assert "squeezes the volume flat" in refusal(write(tmp_path / "a.nii", ramp(), header))


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    # no voxel follows the header: whoever tried to unpack them would complain of a truncated file instead
    header = header_of((2000, 2000, 1000), np.int16)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    message = refusal(path)
    assert "unpacks to 8000 MB (shape (2000, 2000, 1000))" in message
    assert "at most 512 MB" in message and "ingest.max_volume_mb" in message


def test_the_limit_is_what_the_parameter_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp((100, 100, 30)))  # 1.2 MB
    assert "unpacks to 1 MB" in refusal(path, max_volume_mb=1.1)
    assert read_volume(path, "dwi", 1.3).data.shape == (100, 100, 30)


def test_a_file_that_unpacks_to_more_than_its_header_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    content = header_of(SHAPE).binaryblock + bytes(4) + ramp().tobytes(order="F") + bytes(10_000_000)
    path.write_bytes(gzip.compress(content))
    assert "unpacks to more than the 840 bytes that its header promises" in refusal(path)


@pytest.mark.parametrize("offset", [0, 100, 1 << 30])
def test_voxels_at_an_impossible_place_are_refused(tmp_path: Path, offset: int) -> None:
    header = header_of(SHAPE)
    header["vox_offset"] = offset
    assert f"at byte {offset}" in refusal(write(tmp_path / "a.nii", ramp(), header))


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_that_are_no_single_numbers_are_refused(tmp_path: Path, dtype: np.dtype) -> None:
    header = header_of(SHAPE)
    header.set_data_dtype(dtype)
    message = refusal(write(tmp_path / "a.nii", np.zeros(SHAPE, dtype), header))
    assert "must be integers or floats" in message


def test_forms_that_contradict_each_other_are_refused_with_the_distance(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    moved = AFFINE.copy()
    moved[0, 3] = 3.0
    header.set_qform(moved, 1)
    message = refusal(write(tmp_path / "a.nii", ramp(), header))
    assert "qform and sform put a corner 3.0 mm apart" in message and "0.5 mm" in message


def test_forms_that_mirror_each_other_are_refused(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    header.set_qform(np.diag([-2.0, 2.5, 3.0, 1.0]), 1)
    # the far corner lies at +8 mm by one and at -8 mm by the other
    assert "16.0 mm apart" in refusal(write(tmp_path / "a.nii", ramp(), header))


def test_forms_that_differ_by_rounding_are_accepted(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    moved = AFFINE.copy()
    moved[0, 3] = 0.4
    header.set_qform(moved, 1)
    volume = read_volume(write(tmp_path / "a.nii", ramp(), header), "dwi")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_a_file_with_neither_form_is_refused(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    header["sform_code"] = header["qform_code"] = 0
    assert "left and right cannot be told apart" in refusal(write(tmp_path / "a.nii", ramp(), header))


def test_a_qform_alone_is_enough(tmp_path: Path) -> None:
    header = header_of(SHAPE)
    header.set_qform(np.diag([-2.0, 2.5, 3.0, 1.0]), 1)
    header["sform_code"] = 0
    volume = read_volume(write(tmp_path / "a.nii", ramp(), header), "dwi")
    np.testing.assert_array_equal(volume.data, ramp()[::-1])


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PIR", "ASL", "SAR", "IPL"])
def test_every_axis_order_becomes_ras_with_each_value_where_it_was(tmp_path: Path, axes: str) -> None:
    affine = np.zeros((4, 4))
    affine[:, 3] = [-11, 13, -17, 1]
    for column, letter in enumerate(axes):
        row, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[letter]
        affine[row, column] = sign * (2.0, 2.5, 3.0)[column]
    header = header_of(SHAPE)
    header.set_sform(affine, 1)
    volume = read_volume(write(tmp_path / "a.nii", ramp(), header), "dwi")
    assert (np.diag(volume.affine)[:3] > 0).all()
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag(np.diag(volume.affine)[:3]), atol=1e-5)
    for stored in [(0, 0, 0), (4, 0, 0), (1, 5, 2), (3, 2, 6)]:
        (found,) = np.argwhere(volume.data == ramp()[stored])
        np.testing.assert_allclose(volume.affine @ [*found, 1], affine @ [*stored, 1], atol=1e-4)


@pytest.mark.parametrize(
    ("middle", "unit", "factor"),
    [(8.4e-4, "mm^2/s", 1.0), (0.84, "1e-3 mm^2/s", 1e-3), (840.0, "1e-6 mm^2/s", 1e-6)],
)
def test_the_unit_of_adc_is_told_by_the_brains_median(middle: float, unit: str, factor: float) -> None:
    values = np.array([0.5, 0.9, 1.0, 1.1, 3.0], np.float32) * np.float32(middle)
    assert adc_unit(values, "a_adc.nii.gz") == (unit, factor)


@pytest.mark.parametrize("middle", [1e-5, 0.03, 40.0, 90_000.0])
def test_an_adc_in_no_known_unit_is_refused_with_its_median(middle: float) -> None:
    with pytest.raises(StudyError, match=r"a_adc\.nii\.gz: the brain's median ADC is") as caught:
        adc_unit(np.full(9, middle, np.float32), "a_adc.nii.gz")
    assert f"{middle:g}" in str(caught.value) and "1e-6 mm^2/s (200-5000)" in str(caught.value)


def test_an_adc_map_without_a_positive_value_is_refused() -> None:
    with pytest.raises(StudyError, match="median ADC is 0"):
        adc_unit(np.zeros(0, np.float32), "a_adc.nii.gz")


def test_dwi_and_adc_of_different_grids_are_refused_with_both_shapes(tmp_path: Path) -> None:
    dwi, adc = write(tmp_path / "a_dwi.nii", ramp()), write(tmp_path / "a_adc.nii", ramp((6, 6, 7)))
    study = StudyFiles("sub-a", "sub-a", dwi=dwi, adc=adc, in_standard_space=True)
    with pytest.raises(StudyError, match=r"\(5, 6, 7\) and a_adc\.nii \(6, 6, 7\).*must lie on one grid"):
        prepare_study(study, IngestParams())
