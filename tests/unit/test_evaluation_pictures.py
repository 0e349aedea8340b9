"""Pictures and the patients chosen for them; the card; subgroups; comparisons."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_curve

from tests.networks import network_with_opinions
from willis.evaluation import plots
from willis.evaluation.comparison import Comparison, Scored, patients_to_show
from willis.evaluation.examples import choose_examples, saliency_view
from willis.evaluation.metrics import bootstrap_counts
from willis.evaluation.results import Interval
from willis.evaluation.subgroups import groups_of, subgroup_results
from willis.inference import Case, Predictor
from willis.models.decision import Calibration
from willis.models.network import NetworkConfig
from willis.models.text import PACKAGED, TextEncoder

SHAPE = (12, 12, 8)


def a_case(name="sub-1", **changes):
    volume = np.zeros((1, *SHAPE), np.uint8)
    volume[0, 2:5, 3:6, 2:5] = 255
    planes = np.full((3, 96, 96), 120, np.uint8)
    fields = {"volume": volume, "sequence_present": np.array([True]), "planes": planes}
    return Case(**{"case_id": name, "facts": None, "table": None, "text": None, **fields, **changes})


@pytest.fixture(scope="module")
def lesion_predictor():
    """A network as for the derived SOOP set: a lesion mask in 3-D, FLAIR in three planes."""
    torch.manual_seed(0)
    config = NetworkConfig(
        sequences=("lesion",), planes=("flair",), shape=SHAPE, text_encoder=PACKAGED, width=16,
        contrast_width=8, use_modalities=("image",), prevalence=0.4,
    )  # fmt: skip
    return Predictor(network_with_opinions(config), Calibration(), TextEncoder.load(PACKAGED))


def test_planes_are_part_of_the_image(lesion_predictor):
    plain, other, without = lesion_predictor.predict(
        [a_case(), a_case(planes=np.full((3, 96, 96), 10, np.uint8)), a_case(planes=None)]
    )
    assert plain.modalities_used == ("image",)
    assert len({plain.probability, other.probability, without.probability}) == 3
    alone = lesion_predictor.predict([a_case(volume=None)])[0]
    assert alone.modalities_used == ("image",)


def test_a_lesion_and_its_planes_are_drawn(lesion_predictor, tmp_path):
    view = saliency_view(lesion_predictor, a_case(), (2.0, 2.0, 4.0), "sub-1")
    assert view.lesion.sum() == 27
    assert view.saliency[view.lesion].max() > 0
    plots.draw_saliency(tmp_path / "s.png", view)
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 300


def test_the_patients_right_is_drawn_at_the_left(tmp_path):
    """One bright voxel far to the right (high X): it must appear in the left half of the axial slice."""
    background = np.zeros((20, 20, 8), np.float32)
    background[17, 10, 4] = 1.0
    lesion = background > 0
    view = plots.SaliencyView("phantom", background, np.zeros_like(background), lesion, (2.0, 2.0, 4.0))
    plots.draw_saliency(tmp_path / "p.png", view)
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    black = pixels.sum(axis=2) < 15
    columns = np.flatnonzero(black.any(axis=0))
    axial = columns[columns < pixels.shape[1] / 3]
    inside = pixels[:, axial.min() : axial.max() + 1]
    outline = np.flatnonzero((np.abs(inside - [79, 209, 197]).sum(axis=2) < 60).any(axis=0))
    assert outline.size
    assert outline.mean() < inside.shape[1] / 2


def test_a_lesion_alone_is_drawn_over_the_template_brain(lesion_predictor):
    view = saliency_view(lesion_predictor, a_case(), (16.0, 20.0, 24.0), "sub-1")
    assert "template brain" in view.caption()
    assert view.background.shape == SHAPE
    assert view.background[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2] > 0
    assert view.background[0, 0, 0] == 0


def test_planes_are_turned_to_the_sides_of_the_slices(tmp_path):
    """A plane that is bright towards the patient's right only: the axial and the coronal one turn it left."""
    background = np.zeros((20, 20, 8), np.float32)
    planes = np.full((3, 96, 96), 1, np.uint8)
    planes[:, :, 48:] = 200
    view = plots.SaliencyView("x", background, background, None, (2.0, 2.0, 4.0), planes)
    plots.draw_saliency(tmp_path / "p.png", view)
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    bright = (np.abs(pixels - 200).sum(axis=2) < 12).any(axis=0)
    width = pixels.shape[1]
    halves = [
        bright[round(width * k / 12) : round(width * (k + 1) / 12)].mean() > 0.5 for k in (1, 2, 5, 6, 9, 10)
    ]
    assert halves == [True, False, True, False, False, True]


@pytest.fixture
def drawn(monkeypatch):
    """What each picture that is saved takes up, and how large it is, both in inches."""
    found, save = [], plots._save

    def watched(figure, path, description):
        save(figure, path, description)
        taken = figure.get_tightbbox(figure.canvas.get_renderer())
        found.append((tuple(taken.extents), tuple(figure.get_size_inches())))

    monkeypatch.setattr(plots, "_save", watched)
    return found


LONG = "boosting on table, facts and the embedding of the report, after Soenksen and others (HAIM)"


@pytest.mark.parametrize("num_rivals", range(6))
@pytest.mark.parametrize("name", ["ASTRAL", LONG])
def test_no_text_of_the_roc_picture_leaves_it(drawn, tmp_path, num_rivals, name):
    generator = np.random.default_rng(0)
    outcome = (generator.random(60) < 0.5).astype(float)
    rivals = {f"{name} {k}": outcome + generator.normal(0, 1, 60) for k in range(num_rivals)}
    plots.draw_roc(tmp_path / "roc.png", outcome, outcome + generator.normal(0, 1, 60), rivals, outcome * 0.5)
    (left, low, right, high), (width, height) = drawn[0]
    assert min(left, low) >= 0
    assert right <= width
    assert high <= height
    assert right - left > 0.75 * width


def test_no_text_of_a_saliency_picture_leaves_it(drawn, lesion_predictor, tmp_path):
    title = f"{'sub-' + 'x' * 64}: clearest poor outcome; predicted 0.90, outcome poor"
    for planes in (None, a_case().planes):
        view = saliency_view(lesion_predictor, a_case(planes=planes), (2.0, 2.0, 4.0), title)
        plots.draw_saliency(tmp_path / "s.png", view)
    for (left, low, right, high), (width, height) in drawn:
        assert min(left, low) >= 0
        assert right <= width
        assert high <= height


def test_a_picture_says_in_words_what_it_shows_and_names_no_patient(lesion_predictor, tmp_path):
    view = saliency_view(lesion_predictor, a_case(), (2.0, 2.0, 4.0), "sub-1: largest error")
    plots.draw_saliency(tmp_path / "s.png", view)
    with Image.open(tmp_path / "s.png") as picture:
        assert "template brain (ICBM152); outline: lesion" in picture.info["Description"]
        assert "sub-1" not in picture.info["Description"]


def test_examples_are_three_different_patients_with_a_volume():
    cases = [a_case(str(k)) for k in range(5)] + [a_case("none", volume=None)]
    outcome = np.array([1, 1, 0, 0, 1, 1.0])
    probability = np.array([0.9, 0.6, 0.1, 0.8, 0.3, 0.99])
    chosen = choose_examples(cases, outcome, probability)
    assert [k for k, _ in chosen] == [0, 2, 3]


def test_two_patients_give_two_examples():
    chosen = choose_examples([a_case("a"), a_case("b")], np.array([1.0, 0]), np.array([0.7, 0.2]))
    assert [k for k, _ in chosen] == [0, 1]


def test_roc_points_are_those_of_sklearn():
    generator = np.random.default_rng(0)
    outcome = (generator.random(50) < 0.5).astype(float)
    score = np.round(generator.random(50), 1)
    x, y = plots.roc_points(outcome, score)
    expected = roc_curve(outcome, score, drop_intermediate=False)
    assert x == pytest.approx(expected[0])
    assert y == pytest.approx(expected[1])


def test_every_grouping_covers_every_patient_once():
    frame = pd.DataFrame(
        {"age": [40, 65, 79.9, 80, np.nan], "nihss": [0, 5, 15, 16, np.nan],
         "sex": ["F", "M", None, "F", "M"], "scanner": list("aabbb"),
         "f_territory": ["mca", "pca", None, "mca", "mca"]}
    )  # fmt: skip
    groups = groups_of(frame)
    for name in ("age", "nihss", "sex", "scanner", "territory"):
        members = np.stack([member for group, _, member in groups if group == name])
        assert (members.sum(axis=0) == 1).all()
    ages = {level: member.tolist() for group, level, member in groups if group == "age"}
    assert ages["65 to below 80"] == [False, True, True, False, False]


def test_a_small_subgroup_has_no_auc_and_a_large_one_has():
    frame = pd.DataFrame({"sex": ["F"] * 40 + ["M"] * 4})
    outcome = np.array([0.0, 1.0] * 22)
    found = subgroup_results(groups_of(frame), outcome, outcome * 0.5 + 0.1, 0.95)
    by_level = {group.level: group for group in found}
    assert by_level["F"].auc.value == 1.0
    assert by_level["M"].auc is None


@pytest.fixture
def comparison():
    generator = np.random.default_rng(4)
    outcome = (generator.random(200) < 0.4).astype(float)
    headline = outcome + generator.normal(0, 1, 200)
    return Comparison(outcome, headline, bootstrap_counts(200, 500, 0), 0.95)


def test_the_headline_leads_over_itself_by_exactly_nothing(comparison):
    rival = comparison.rival(Scored("same", comparison.headline[None]), "control")
    assert (rival.lead.value, rival.lead.low, rival.lead.high) == (0, 0, 0)
    assert rival.auc == comparison.interval()


def test_a_pairing_is_narrower_than_two_separate_intervals(comparison):
    near = comparison.headline + np.random.default_rng(0).normal(0, 0.2, 200)
    rival = comparison.rival(Scored("near", near[None], is_probability=False), "baseline")
    assert rival.brier is None
    assert rival.lead.high - rival.lead.low < 0.4 * (rival.auc.high - rival.auc.low)


def test_repeats_of_a_control_are_averaged(comparison):
    noise = np.random.default_rng(0).normal(size=(3, 200))
    together = comparison.rival(Scored("noise", noise), "control").auc.value
    alone = [comparison.rival(Scored("noise", row[None]), "control").auc.value for row in noise]
    assert together == pytest.approx(np.mean(alone))


def test_four_times_the_patients_halve_the_interval():
    lead = Interval(value=0.0, low=-0.04, high=0.04)
    assert patients_to_show(0.01, 100, lead) == 1600
