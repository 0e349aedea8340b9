import numpy as np
import pytest

from willis.cohort.anatomy import LACUNE, TERRITORIES, load_anatomy
from willis.cohort.lesions import GRID, grid_positions, load_library
from willis.cohort.patients import Image, draw, reshape
from willis.cohort.physics import (
    FLUID,
    GREY,
    SCANNERS,
    WHITE,
    adc_from,
    lesion_t2_factor,
    rician,
    scanner_named,
    tissue_signal,
)
from willis.cohort.render import Study, render
from willis.errors import ParamsError


@pytest.fixture(scope="module")
def patients() -> list[tuple[Image, Study]]:
    """One patient per territory, each with its MRI on the scanner `north`."""
    image, _ = draw(np.random.default_rng(2), 400, load_library())
    out = []
    for territory in range(len(TERRITORIES)):
        row = int(np.flatnonzero((image.territory == territory) & (image.volume_ml > 0.5))[0])
        one = reshape(image, np.array([row]))
        out.append((one, render(np.random.default_rng(row), one, SCANNERS["north"])))
    return out


def test_a_lesion_has_its_exact_number_of_voxels(patients: list[tuple[Image, Study]]) -> None:
    for image, study in patients:
        sizes = [float(image.main_ml[0]), *image.satellite_ml[0]]
        assert int(study.lesion.sum()) == sum(max(1, round(ml / 0.016)) for ml in sizes if ml > 0)


def test_a_single_lesion_stays_in_its_hemisphere(patients: list[tuple[Image, Study]]) -> None:
    x = grid_positions()[0]
    for image, study in patients:
        if image.num_lesions[0] == 1:
            side = x[study.lesion > 0]
            # a warp of a few mm may carry the midline along
            assert ((side < 5) if image.left[0] else (side > -5)).all()


def test_territories_lie_where_textbooks_have_them() -> None:
    anatomy = load_anatomy()
    spots = {
        "mca": (-52, -10, 20), "pca": (12, -88, 4), "aca": (-6, 50, 20), "vertebrobasilar": (20, -60, -40),
        "mca_deep": (-25, 2, 2),
    }  # fmt: skip
    for name, spot in spots.items():
        index = anatomy.nearest(np.array(spot, np.float32)[:, None])
        assert TERRITORIES[int(anatomy.territory[index][0]) - 1] == name
    assert anatomy.lacunar[anatomy.nearest(np.array([[25.0], [2.0], [2.0]], np.float32))].all()
    assert LACUNE + 1 not in np.unique(anatomy.territory)


def test_the_core_is_dark_on_adc_and_bright_on_dwi(patients: list[tuple[Image, Study]]) -> None:
    for image, study in patients:
        core, brain = study.lesion > 0, study.dwi > 0
        if image.haemorrhage[0] == 0:
            assert (study.adc[core] < 620).mean() > 0.7
            assert np.median(study.dwi[core]) > 1.3 * np.median(study.dwi[brain])
        assert (study.adc[brain & ~core] < 620).mean() < 0.06


def test_the_background_is_exactly_zero_and_the_brain_is_not(patients: list[tuple[Image, Study]]) -> None:
    for _, study in patients:
        brain = study.dwi > 0
        assert study.dwi.shape == GRID.shape == (88, 104, 40)
        assert ((study.adc > 0) == brain).all() and ((study.flair > 0) == brain).all()
        assert 1000 < brain.sum() * GRID.voxel_ml < 2400
        assert not (study.lesion > 0)[~brain].any()


def test_the_same_random_state_gives_the_same_volumes(patients: list[tuple[Image, Study]]) -> None:
    image, _ = patients[0]
    first, second = (render(np.random.default_rng(5), image, SCANNERS["east"]) for _ in range(2))
    assert (first.dwi == second.dwi).all() and (first.flair == second.flair).all()


def test_adc_of_a_pure_tissue_is_that_of_the_tissue() -> None:
    for tissue in (GREY, WHITE, FLUID):
        signal = tissue_signal(tissue, SCANNERS["north"])
        assert adc_from(signal.b0, signal.b1000) == pytest.approx(1000 * tissue.adc, rel=1e-4)


def test_flair_hides_fluid_and_shows_grey_over_white() -> None:
    for name in ("north", "south", "east"):
        grey, white, fluid = (float(tissue_signal(t, SCANNERS[name]).flair) for t in (GREY, WHITE, FLUID))
        assert fluid < 0.2 * grey
        assert white < grey < 1.5 * white


def test_flair_shows_the_lesion_after_hours_and_not_before() -> None:
    early, late = (
        float(tissue_signal(GREY, SCANNERS["north"], lesion_t2_factor(hours)).flair) for hours in (2.0, 12.0)
    )
    sound = float(tissue_signal(GREY, SCANNERS["north"]).flair)
    assert early / sound < 1.15 < late / sound


def test_rician_noise_lifts_an_empty_voxel_by_the_rayleigh_mean() -> None:
    seen = rician(np.random.default_rng(0), np.zeros(200_000, np.float32), 2.0)
    assert seen.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.01)


def test_old_brains_have_wider_ventricles() -> None:
    image, _ = draw(np.random.default_rng(2), 1, load_library())
    fluid = []
    for atrophy in (-1.0, 2.5):
        changed = Image(**{**vars(image), "atrophy": np.array([atrophy])})
        study = render(np.random.default_rng(4), changed, SCANNERS["north"])
        fluid.append((study.adc > 1800).sum())
    assert fluid[1] > 1.3 * fluid[0]


def test_an_unknown_scanner_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParamsError, match=r"'west' is not known; choose from north, south, east, new"):
        scanner_named("west")
