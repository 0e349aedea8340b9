"""The picture of three FLAIR planes: paint is taken out, signal stays, other pictures are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from willis.errors import StudyError
from willis.imaging.planes import read_planes

WIDTH, HEIGHT = 503, 189
STARTS = (0, 157, 346)
"""First columns of the axial, sagittal and coronal slice."""


def grey_picture() -> np.ndarray:
    """One brightness per plane: 60, 120 and 180, as RGB."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for start, value in zip(STARTS, (60, 120, 180), strict=True):
        picture[:, start:] = value
    return picture


def painted(picture: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Lay red of half opacity over a rectangle, as the source's pictures have it."""
    out = picture.astype(float)
    out[rows, columns] = 0.5 * out[rows, columns] + 0.5 * np.array([255, 0, 0])
    return out.astype(np.uint8)


def save(folder: Path, picture: np.ndarray, name: str = "sub-a_FLAIR.png") -> Path:
    """Write it as a PNG."""
    Image.fromarray(picture).save(folder / name, format="PNG")
    return folder / name


def test_three_planes_come_out_as_squares_with_their_brightness(tmp_path: Path) -> None:
    planes = read_planes(save(tmp_path, grey_picture()))
    assert planes.shape == (3, 96, 96) and planes.dtype == np.uint8
    for plane, value in zip(planes, (60, 120, 180), strict=True):
        assert set(np.unique(plane)) <= {0, value} and plane[48, 48] == value


def test_translucent_red_becomes_nothing_and_nothing_of_it_shines_through(tmp_path: Path) -> None:
    rows, columns = slice(70, 110), slice(60, 100)
    planes = read_planes(save(tmp_path, painted(grey_picture(), rows, columns)))
    axial = planes[0]
    # the axial plane is 157 of 189 columns, set in the middle: 16 empty columns on its left
    assert not axial[38:54, 41:56].any()
    # red over 60 would average to (157 + 30 + 30) / 3 = 72; no such value is left anywhere
    assert set(np.unique(axial)) == {0, 60}
    assert axial[10, 48] == 60 and axial[80, 48] == 60
    assert (planes[1] == 120).sum() == 96 * 96 and planes[2][48, 48] == 180


def test_faint_paint_and_its_soft_edge_are_taken_out_too(tmp_path: Path) -> None:
    picture = grey_picture()
    picture[80:100, 220:240] = (130, 118, 118)
    planes = read_planes(save(tmp_path, picture))
    assert set(np.unique(planes[1])) == {0, 120}
    # 20 rows and 2 on either side are 24 of 189, or 12.2 cells of 96; two cells may be cut by the edge
    assert (planes[1][:, 37] == 0).sum() in (11, 12, 13)


def test_a_picture_without_paint_keeps_every_pixel(tmp_path: Path) -> None:
    planes = read_planes(save(tmp_path, grey_picture()))
    assert (planes[1] == 120).all()


def test_rows_run_downwards_as_in_the_picture(tmp_path: Path) -> None:
    picture = grey_picture()
    picture[:40, 157:346] = 240
    plane = read_planes(save(tmp_path, picture))[1]
    assert plane[5, 48] == 240 and plane[90, 48] == 120


def test_columns_right_of_the_planes_are_not_read(tmp_path: Path) -> None:
    wide = np.full((HEIGHT, 800, 3), 255, np.uint8)
    wide[:, :WIDTH] = grey_picture()
    first, second = save(tmp_path, wide, "wide.png"), save(tmp_path, grey_picture(), "narrow.png")
    np.testing.assert_array_equal(read_planes(first), read_planes(second))


@pytest.mark.parametrize(("width", "height"), [(502, 189), (503, 188), (5000, 189)])
def test_a_picture_of_another_size_is_refused_with_its_size(tmp_path: Path, width: int, height: int) -> None:
    path = save(tmp_path, np.zeros((height, width, 3), np.uint8))
    with pytest.raises(StudyError, match=rf"{width} x {height} pixels; planes are 503 columns"):
        read_planes(path)


def test_what_is_no_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sub-a_FLAIR.png"
    Image.fromarray(grey_picture()).save(path, format="JPEG")
    with pytest.raises(StudyError, match="is not a readable PNG"):
        read_planes(path)


def test_a_truncated_png_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    path = save(tmp_path, noise)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StudyError, match="is not a readable PNG"):
        read_planes(path)


def test_a_file_too_large_for_a_picture_of_planes_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "sub-a_FLAIR.png"
    path.write_bytes(bytes(4_100_000))
    with pytest.raises(StudyError, match="has 4100000 bytes"):
        read_planes(path)
