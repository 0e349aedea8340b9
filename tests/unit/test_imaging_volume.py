import gzip
import re
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.phantoms import reoriented, write
from willis.errors import StudyError
from willis.imaging.volume import read_volume

AFFINE = np.array([[2.0, 0, 0, -20], [0, 2, 0, -24], [0, 0, 4, -12], [0, 0, 0, 1]])


def values(shape: tuple[int, ...] = (20, 24, 6), dtype: Any = np.int16) -> Any:
    return np.random.default_rng(1).integers(1, 200, shape).astype(dtype)


def refusal(path: Path, sequence: Any = "dwi", **kwargs: Any) -> str:
    with pytest.raises(StudyError) as caught:
        read_volume(path, sequence, **kwargs)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_as_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a_dwi.nii.gz", values(), AFFINE)
    path.write_bytes(path.read_bytes()[:-200])
    assert "ends early or is damaged" in refusal(path)


def test_an_uncompressed_file_cut_short_names_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a_dwi.nii", values(), AFFINE)
    path.write_bytes(path.read_bytes()[:-100])
    assert re.search(r"holds 5660 bytes of voxels; its header promises 5760", refusal(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GIF89a" * 100, gzip.compress(b"hello" * 500)])
def test_a_file_that_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a_dwi.nii.gz"
    path.write_bytes(content)
    assert "a NIfTI file starts with its header size" in refusal(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing.nii.gz")


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1), (20, 24, 2)])
def test_a_plane_is_no_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert "a volume has three axes" in refusal(write(tmp_path / "a.nii.gz", values(shape), AFFINE))


def test_four_axes_are_refused_when_the_last_is_more_than_one(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.nii.gz", values((20, 24, 6, 3)), AFFINE))
    assert "4-D with shape (20, 24, 6, 3)" in message


def test_a_last_axis_of_one_is_normal(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "a.nii.gz", values((20, 24, 6, 1)), AFFINE), "dwi")
    assert volume.data.shape == (20, 24, 6)


def test_nan_is_refused_with_its_share(tmp_path: Path) -> None:
    data = values(dtype=np.float32)
    data[:2] = np.nan
    assert "NaN or infinity in 10.00%" in refusal(write(tmp_path / "a.nii.gz", data, AFFINE))


def test_an_all_zero_image_is_refused_but_an_empty_mask_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.zeros((20, 24, 6), np.int16), AFFINE)
    assert "holds 0 in every voxel" in refusal(path)
    assert read_volume(path, "lesion").data.sum() == 0


def test_a_mask_with_fractions_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.full((20, 24, 6), 0.3, np.float32), AFFINE)
    assert "lesion mask with values other than" in refusal(path, "lesion")


def test_spacing_zero_is_refused_with_the_rule(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", values(), AFFINE)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<f", raw, 76 + 4 * 3, 0.0)  # pixdim[3] of the NIfTI-1 header
    path.write_bytes(bytes(raw))
    assert "spacing_mm[2] is 0; every edge must be 0.2 to 12 mm" in refusal(path)


def test_qform_against_sform_is_refused_with_the_distance(tmp_path: Path) -> None:
    def mirror(image: Any) -> None:
        image.set_sform(np.diag([-1.0, 1, 1, 1]) @ AFFINE, 1)

    message = refusal(write(tmp_path / "a.nii.gz", values(), AFFINE, mirror))
    assert "qform and sform put a corner 40.0 mm apart" in message


def test_a_file_without_qform_and_sform_is_refused(tmp_path: Path) -> None:
    def forget(image: Any) -> None:
        image.set_qform(None, 0)
        image.set_sform(None, 0)

    assert "neither qform nor sform" in refusal(write(tmp_path / "a.nii.gz", values(), AFFINE, forget))


def test_a_bomb_that_tells_its_size_is_refused_before_unpacking(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    assert "at most 512 MB are read" in refusal(path)


def test_a_bomb_that_hides_its_size_is_not_unpacked_further(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", values(), AFFINE)
    bomb = tmp_path / "b.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes() + bytes(50_000_000)))
    assert "unpacks to more than the 5760 bytes" in refusal(bomb)


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", values(dtype=np.complex64), AFFINE)
    assert "must be integers or floats" in refusal(path)


def test_a_ct_is_not_taken_for_a_magnitude_image(tmp_path: Path) -> None:
    assert "not negative" in refusal(write(tmp_path / "a.nii.gz", values() - 1024, AFFINE))


@pytest.mark.parametrize("axes", ["LAS", "LPS", "RPI", "ASR", "SLP"])
def test_every_axis_order_is_read_as_ras(tmp_path: Path, axes: str) -> None:
    data = values()
    moved, affine = reoriented(data, AFFINE, axes)
    volume = read_volume(write(tmp_path / "a.nii.gz", moved, affine), "dwi")
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    def scale(image: Any) -> None:
        image.header.set_slope_inter(0.5, 3)

    path = write(tmp_path / "a.nii", values(dtype=np.float32), AFFINE, scale)
    expected = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    np.testing.assert_allclose(read_volume(path, "dwi").data, expected, rtol=1e-6)
