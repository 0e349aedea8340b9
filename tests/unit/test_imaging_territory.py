from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from willis.errors import CohortError
from willis.imaging.territory import ArterialMap, default_map, load_map

# textbook places in MNI millimetres, left side; the right ones mirror them
PLACES = {
    "aca": [(-6, 50, 10), (-6, -20, 66), (-5, -62, 46)],
    "mca_frontal": [(-40, 4, 46), (-50, 16, 12)],
    "mca_parietal": [(-56, -34, 36)],
    "mca_temporal": [(-60, -20, 0), (-56, -24, 10)],
    "mca_insula": [(-38, 4, 2), (-40, 0, 4)],
    "lenticulostriate": [(-26, 4, 2), (-12, 12, 8)],
    "thalamus": [(-10, -20, 8)],
    "pca_occipital": [(-8, -84, 6), (-10, -86, 4)],
    "cerebellum": [(-26, -64, -36), (-28, -64, -38)],
    "brainstem": [(-5, -26, -34), (-5, -28, -34)],
}
ARTERIES = {"lenticulostriate": "mca", "thalamus": "pca"} | dict.fromkeys(
    ("cerebellum", "brainstem"), "vertebrobasilar"
)


def named(territories: ArterialMap, points: list[tuple[float, float, float]]) -> list[str]:
    labels = territories.at(np.array(points, float))
    return [territories.regions[label - 1].name if label else "" for label in labels]


@pytest.mark.parametrize("part", PLACES)
def test_textbook_places_have_their_region_on_both_sides(part: str) -> None:
    left = PLACES[part]
    right = [(-x, y, z) for x, y, z in left]
    assert set(named(default_map(), left)) == {f"{part}_left"}
    assert set(named(default_map(), right)) == {f"{part}_right"}
    arteries = {region.artery for region in default_map().regions if region.name.startswith(f"{part}_")}
    assert arteries == {ARTERIES.get(part, part.split("_")[0])}


def test_the_default_map_fills_white_matter_and_stays_in_the_brain() -> None:
    territories = default_map()
    white, outside = named(territories, [(-26, -20, 30), (0, 0, 120)])
    assert white.endswith("_left") and outside == ""
    volume_ml = (territories.labels > 0).sum() * 8 / 1000
    assert 1600 < volume_ml < 2000


def write_atlas(folder: Path, legend: str, labels: int = 2) -> Path:
    data = np.zeros((20, 10, 10), np.int16)
    data[:10] = 1
    data[10:] = labels
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = 9.5  # the first axis runs from right to left, as in the real one
    nib.save(nib.Nifti1Image(data, affine), folder / "Atlas.nii.gz")
    (folder / "Atlas.txt").write_text(legend)
    return folder / "Atlas.nii.gz"


def test_the_description_decides_the_side_where_labels_hold_typos(tmp_path: Path) -> None:
    words = "parietal pars of middle cerebral artery"
    legend = f"1|MCAPL|{words} right|4\n2|MCAPL|{words} left|3\n"
    territories = load_map(write_atlas(tmp_path, legend))
    assert [(r.name, r.side, r.artery) for r in territories.regions] == [
        ("mcapr", "right", "mca"),
        ("mcapl", "left", "mca"),
    ]
    assert named(territories, [(5, 3, 3), (-5, 3, 3)]) == ["mcapr", "mcapl"]


@pytest.mark.parametrize(
    ("legend", "message"),
    [
        ("1|A|one left|1\n", "names 1"),
        ("1|A|one left|1\n2|A|two left|1\n", "the same name and side"),
        ("1|A|one|1\n2|B|two left|1\n", "line 1"),
    ],
)
def test_an_atlas_that_contradicts_its_legend_is_refused(tmp_path: Path, legend: str, message: str) -> None:
    with pytest.raises(CohortError, match=message):
        load_map(write_atlas(tmp_path, legend))


def test_an_atlas_without_legend_is_refused(tmp_path: Path) -> None:
    path = write_atlas(tmp_path, "")
    path.with_name("Atlas.txt").unlink()
    with pytest.raises(CohortError, match="Atlas.txt"):
        load_map(path)


def test_the_real_atlas_has_32_regions_on_the_right_sides(data_dir: Path) -> None:
    territories = load_map(data_dir / "soop" / "NIfTI" / "ArterialAtlas136.nii.gz")
    assert len({region.name for region in territories.regions}) == 32
    index = np.argwhere(territories.labels > 0)
    x = index @ territories.affine[0, :3] + territories.affine[0, 3]
    labels = territories.labels[territories.labels > 0]
    for number, region in enumerate(territories.regions, start=1):
        mean = x[labels == number].mean()
        assert (mean < 0) == (region.side == "left"), region.name


def test_the_default_map_agrees_with_the_real_atlas_on_most_of_the_brain(data_dir: Path) -> None:
    real = load_map(data_dir / "soop" / "NIfTI" / "ArterialAtlas136.nii.gz")
    points = np.argwhere(real.labels > 0)[::200] @ real.affine[:3, :3].T + real.affine[:3, 3]
    ours, theirs = default_map().at(points), real.at(points)
    pairs = [
        (default_map().regions[a - 1].artery, real.regions[b - 1].artery)
        for a, b in zip(ours, theirs, strict=True)
        if a and real.regions[b - 1].artery != "none"
    ]
    assert np.mean([a == b for a, b in pairs]) > 0.85
