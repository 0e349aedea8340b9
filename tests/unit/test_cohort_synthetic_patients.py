import csv
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from willis.cohort.anatomy import TERRITORIES
from willis.cohort.ceiling import conditional, expected_auc, given_table, make_support
from willis.cohort.clinic import GAPS
from willis.cohort.lesions import load_library
from willis.cohort.outcome import GRADE_OFFSETS, Preset, draw_mrs, eta, probability, salvage
from willis.cohort.patients import Image, Table, draw, reshape, sigmoid

Pair = tuple[Image, Table]


@pytest.fixture(scope="module")
def drawn() -> Pair:
    return draw(np.random.default_rng(11), 20_000, load_library())


def test_volumes_and_territories_follow_the_published_shares(drawn: Pair) -> None:
    image, _ = drawn
    shares = np.bincount(image.territory, minlength=len(TERRITORIES)) / len(image.order)
    assert dict(zip(TERRITORIES, shares.round(2), strict=True)) == pytest.approx(
        {"mca": 0.42, "mca_deep": 0.14, "pca": 0.18, "vertebrobasilar": 0.12, "lacune": 0.10, "aca": 0.04},
        abs=0.015,
    )
    low, middle, high = np.percentile(image.volume_ml, [25, 50, 75])
    assert (low, middle, high) == pytest.approx((2.5, 6.0, 18.0), rel=0.15)
    assert image.volume_ml.max() <= 260
    assert image.volume_ml[image.territory == TERRITORIES.index("lacune")].max() <= 1.8


def test_the_table_has_the_published_margins(drawn: Pair) -> None:
    image, table = drawn
    assert table.age.mean() == pytest.approx(70, abs=0.7)
    assert table.age.std() == pytest.approx(13, abs=0.8)
    assert table.atrial_fibrillation.mean() == pytest.approx(0.21, abs=0.02)
    assert table.diabetes.mean() == pytest.approx(0.24, abs=0.02)
    assert table.hypertension.mean() == pytest.approx(0.65, abs=0.02)
    assert np.percentile(table.nihss, [25, 50, 75]) == pytest.approx([2, 5, 9], abs=1)
    assert np.corrcoef(table.nihss, image.volume_ml)[0, 1] == pytest.approx(0.4, abs=0.05)


def test_a_left_mca_lesion_is_more_severe_than_a_right_one_of_equal_volume(drawn: Pair) -> None:
    image, table = drawn
    equal = (image.territory == 0) & (image.volume_ml > 8) & (image.volume_ml < 20)
    left, right = (table.nihss[equal & (image.left == side)].mean() for side in (True, False))
    assert left > right + 1


def test_treatment_times_are_known_for_the_treated_alone(drawn: Pair) -> None:
    _, table = drawn
    treated = (table.thrombolysis + table.thrombectomy) > 0
    assert (np.isfinite(table.onset_to_treatment_h) == treated).all()
    assert (table.onset_to_treatment_h[treated] > table.onset_to_admission_h[treated]).all()


def test_each_gap_is_between_four_and_sixteen_percent(drawn: Pair) -> None:
    _, table = drawn
    shares = {name: float(sigmoid(gap(table)).mean()) for name, gap in GAPS.items()}
    assert all(0.04 <= share <= 0.16 for share in shares.values()), shares


def test_negative_studies_have_no_lesion_and_milder_signs() -> None:
    image, table = draw(np.random.default_rng(3), 4000, load_library(), without_infarct=0.5)
    none = image.infarct == 0
    assert none.mean() == pytest.approx(0.5, abs=0.03)
    assert image.volume_ml[none].max() == 0
    assert image.num_lesions[none].max() == 0
    assert np.median(table.nihss[none]) < np.median(table.nihss[~none])


def test_the_grades_spread_as_the_published_distributions_of_untreated_strokes() -> None:
    spec = find_spec("stroke_outcome")
    assert spec is not None and spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], "data", "mrs_dist_probs_cumsum.csv")
    rows = {row[0]: row[1:] for row in csv.reader(path.read_text().splitlines()) if len(row) == 8}
    offsets = []
    for name in ("no_treatment_lvo", "no_treatment_nlvo"):
        up_to = np.array([float(v) for v in rows[name][:6]])
        logit = np.log((1 - up_to) / up_to)
        offsets.append(logit - logit[2])
    assert np.mean(offsets, axis=0) == pytest.approx(GRADE_OFFSETS, abs=0.01)


def test_drawn_grades_are_poor_as_often_as_the_truth_says() -> None:
    grades = draw_mrs(np.random.default_rng(1), np.full(200_000, -0.4))
    assert (grades >= 3).mean() == pytest.approx(1 / (1 + np.exp(0.4)), abs=0.004)
    assert set(np.unique(grades)) == set(range(7))


def test_the_benefit_of_treatment_shrinks_with_the_core() -> None:
    volumes = np.array([0.0, 10.0, 70.0, 200.0])
    published, harmful = salvage(volumes, 70, 0.0), salvage(volumes, 30, 1.5)
    assert published[0] == 1 and published[2] == pytest.approx(0.5)
    assert (np.diff(published) < 0).all() and published.min() > 0
    assert harmful[0] == 1 and harmful[-1] < 0


def test_pairs_broadcast_to_the_same_truth_as_patients_one_by_one(drawn: Pair) -> None:
    image, table = (reshape(group, np.arange(5)) for group in drawn)
    everyone = eta(reshape(table, (slice(None), None)), reshape(image, (None, slice(None))), "interacting")
    assert np.diag(everyone) == pytest.approx(eta(table, image, "interacting"))


def test_expected_auc_equals_the_count_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    score, chance = rng.integers(0, 9, 60).astype(float), rng.random(60)
    won, total = 0.0, 0.0
    for i in range(60):
        for j in range(60):
            weight = chance[i] * (1 - chance[j])
            won += weight * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
            total += weight
    assert expected_auc(score, chance) == pytest.approx(won / total)


@pytest.mark.parametrize("preset", ["published", "interacting"])
def test_conditional_expectations_are_right_on_average_wherever_they_are_equal(
    drawn: Pair, preset: Preset
) -> None:
    image, table = (reshape(group, np.arange(4000)) for group in drawn)
    truth = probability(table, image, preset)
    best = conditional(make_support(preset, size=600), table, image)
    for name in ("image", "table"):
        tenths = np.array_split(np.argsort(best[name]), 10)
        told, found = ([values[rows].mean() for rows in tenths] for values in (best[name], truth))
        assert told == pytest.approx(found, abs=0.045), name
    assert sigmoid(best["additive"]).mean() == pytest.approx(truth.mean(), abs=0.02)


def test_a_table_that_fits_one_image_alone_takes_that_image_s_probability(drawn: Pair) -> None:
    # slow reference: weigh the support's images by hand, term by term, for one patient
    from willis.cohort.patients import log_link

    support = make_support("published", size=200)
    _, table = (reshape(group, np.array([7])) for group in drawn)
    weights, chances = [], []
    for k in range(200):
        one = reshape(support.image, np.array([k]))
        weights.append(float(log_link(table, one)[0]) + float(support.image_log_scale[k]))
        chances.append(float(probability(table, one, "published")[0]))
    share = np.exp(np.array(weights) - max(weights))
    assert given_table(support, table)[0] == pytest.approx((share / share.sum()) @ chances, rel=1e-3)


def test_every_latent_is_finite(drawn: Pair) -> None:
    for group in drawn:
        for field in fields(group):
            values = getattr(group, field.name)
            assert field.name == "onset_to_treatment_h" or np.isfinite(values).all(), field.name
