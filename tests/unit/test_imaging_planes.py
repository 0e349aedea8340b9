from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from willis.errors import StudyError
from willis.imaging.planes import read_planes


def picture(folder: Path, paint: bool = True, size: tuple[int, int] = (503, 189)) -> Path:
    """Grey 100 in the axial, 150 in the sagittal, 200 in the coronal plane; a red square in the first."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for grey, (a, b) in zip((100, 150, 200), ((0, 157), (157, 346), (346, 503)), strict=True):
        pixels[:, a:b] = grey
    if paint:
        pixels[40:80, 20:60] = [178, 50, 50]
    path = folder / "planes.png"
    Image.fromarray(pixels).save(path)
    return path


def test_three_planes_are_cut_apart_and_centred(tmp_path: Path) -> None:
    planes = read_planes(picture(tmp_path, paint=False))
    assert planes.shape == (3, 96, 96) and planes.dtype == np.uint8
    assert [int(plane[48, 48]) for plane in planes] == [100, 150, 200]
    assert planes[0][:, :7].max() == 0 and planes[1][:, 0].min() == 150


def test_every_painted_pixel_is_taken_out_with_its_neighbours(tmp_path: Path) -> None:
    planes = read_planes(picture(tmp_path))
    left = (189 - 157) // 2
    rows, columns = np.nonzero(planes[0][:, 10:86] == 0)
    assert rows.min() <= 40 * 96 // 189 and rows.max() >= 79 * 96 // 189
    assert columns.min() + 10 <= (20 + left) * 96 // 189
    assert set(np.unique(planes[0])) == {0, 100}, "no mixture of paint and signal is left"
    assert planes[1].min() == 150


@pytest.mark.parametrize("size", [(400, 189), (503, 190), (5000, 189)])
def test_a_picture_of_another_size_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(StudyError, match=r"503 columns or more by 189 rows"):
        read_planes(picture(tmp_path, size=size))


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(StudyError, match=r"planes.png is not a readable PNG"):
        read_planes(path)


def test_a_jpeg_under_the_name_of_a_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "planes.png"
    Image.new("RGB", (503, 189)).save(path, format="JPEG")
    with pytest.raises(StudyError, match="not a readable PNG"):
        read_planes(path)


def test_no_red_is_left_in_a_real_picture(data_dir: Path) -> None:
    path = data_dir / "soop" / "PNG" / "rsub-446_lesion.nii.png"
    pixels = np.asarray(Image.open(path).convert("RGB"), np.int16)
    painted = (pixels[:, :157, 0] - pixels[:, :157, 1]) > 8
    shown = read_planes(path)[0]
    rows, columns = np.nonzero(painted)
    assert painted.sum() > 4000
    assert shown[rows * 96 // 189, (columns + 16) * 96 // 189].mean() < 2
