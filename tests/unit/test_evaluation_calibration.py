"""Calibration, conformal sets, Shapley values and net benefit against definitions and simulation."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from willis.errors import BundleError
from willis.evaluation import calibration, conformal, decision
from willis.evaluation.fitting import Labelled, fit_calibration
from willis.models.decision import (
    Calibration,
    logit,
    prediction_set,
    shapley,
    sigmoid,
    subsets_of,
    tempered,
)


def draw(n, seed=0, sharpness=1.0):
    """Outcomes of normal log-odds, and probabilities whose log-odds are `sharpness` times those."""
    generator = np.random.default_rng(seed)
    log_odds = generator.normal(-0.5, 1.2, n)
    outcome = (generator.random(n) < sigmoid(log_odds)).astype(float)
    return outcome, sigmoid(sharpness * log_odds)


def test_temperature_minimises_the_log_loss():
    outcome, probability = draw(400, sharpness=2.5)

    def loss(temperature):
        p = sigmoid(logit(probability) / temperature)
        return -np.mean(outcome * np.log(p) + (1 - outcome) * np.log(1 - p))

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8}).x
    assert calibration.fit_temperature(outcome, probability) == pytest.approx(best, abs=1e-4)


def test_temperature_recovers_an_overconfident_model():
    outcome, probability = draw(20_000, sharpness=2.5)
    assert calibration.fit_temperature(outcome, probability) == pytest.approx(2.5, rel=0.06)


def test_temperature_keeps_the_order_of_patients():
    probability = draw(50)[1]
    assert (np.argsort(tempered(probability, 3.0)) == np.argsort(probability)).all()


def test_splits_that_are_too_small_leave_temperature_1_and_the_prevalence_and_say_why():
    few = Labelled(np.array([0.0, 1.0]), np.array([0.2, 0.9]))
    one_class = Labelled(np.ones(50), np.full(50, 0.6))
    fitted = fit_calibration(few, one_class, coverage=0.9, prevalence=0.37)
    assert (fitted.temperature, fitted.threshold) == (1.0, 0.37)
    assert "temperature stays 1: calibration holds 50 patients, 50 of them poor" in fitted.notes[0]
    assert "the training prevalence, 0.370: validation holds 2 patients, 1 of them poor" in fitted.notes[1]


def test_the_temperature_is_that_of_patients_who_did_not_stop_the_training():
    flattered, held_out = Labelled(*draw(500)), Labelled(*draw(20_000, sharpness=2.0))
    assert fit_calibration(flattered, held_out, 0.9, 0.4).temperature == pytest.approx(2.0, rel=0.06)


@given(st.floats(0.2, 5.0), st.integers(0, 10_000))
def test_a_temperature_changes_no_prediction_set(temperature: float, seed: int):
    generator = np.random.default_rng(seed)
    outcome = (generator.random(60) < 0.4).astype(float)
    raw, others = generator.random(60), generator.random(40)
    quantile = conformal.fit_quantile(outcome, raw, 0.9)
    cooled = conformal.fit_quantile(outcome, tempered(raw, temperature), 0.9)
    for one, softer in zip(others, tempered(others, temperature), strict=True):
        assert prediction_set(float(one), quantile) == prediction_set(float(softer), cooled)


def test_slope_and_intercept_equal_an_unpenalised_logistic_regression():
    outcome, probability = draw(500, sharpness=1.7)
    reference = LogisticRegression(C=1e10, tol=1e-10).fit(logit(probability)[:, None], outcome)
    slope, intercept = calibration.slope_and_intercept(outcome, probability)
    assert slope == pytest.approx(reference.coef_[0, 0], abs=1e-4)
    p = sigmoid(logit(probability) + intercept)  # at slope 1 the intercept makes the means meet
    assert p.mean() == pytest.approx(outcome.mean(), abs=1e-9)


def test_an_outcome_that_separates_has_no_slope():
    assert calibration.slope_and_intercept([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])[0] is None


def test_ece_by_hand():
    outcome = np.array([0] * 10 + [1] * 10)
    probability = np.array([0.2] * 10 + [0.6] * 10)
    assert calibration.expected_calibration_error(outcome, probability) == pytest.approx(0.3)


def test_bins_hold_equal_numbers_of_patients():
    outcome, probability = draw(93)
    sizes = [b.num_patients for b in calibration.equal_mass_bins(outcome, probability)]
    assert sum(sizes) == 93
    assert max(sizes) - min(sizes) <= 1


def test_a_perfect_model_exceeds_the_reference_ece_in_one_sample_of_twenty():
    probability = draw(200)[1]
    reference = calibration.ece_of_perfect_model(probability, num_draws=2000, seed=1)
    generator = np.random.default_rng(2)
    above = [
        calibration.expected_calibration_error(
            (generator.random(200) < probability).astype(float), probability
        )
        > reference
        for _ in range(400)
    ]
    assert 0.02 < np.mean(above) < 0.09


def test_half_of_all_perfect_models_of_1000_patients_miss_an_ece_of_3_percent():
    probability = draw(1000)[1]
    assert calibration.ece_of_perfect_model(probability, quantile=0.5) == pytest.approx(0.03, abs=0.006)


def test_conformal_quantile_is_the_rank_that_the_promise_needs():
    outcome, probability = np.zeros(19), np.linspace(0.05, 0.95, 19)
    assert conformal.fit_quantile(outcome, probability, 0.9) == pytest.approx(
        0.90
    )  # 18th of 19 = ceil(20 * .9)


def test_too_few_calibration_patients_leave_every_class_in_every_set():
    quantile = conformal.fit_quantile([0, 1, 0], [0.1, 0.9, 0.2], 0.9)
    assert quantile == 1.0
    assert prediction_set(0.01, quantile) == ("good", "poor")


def test_conformal_sets_keep_their_promise_even_for_a_bad_model():
    outcome, probability = draw(6000, seed=5, sharpness=4.0)
    found = conformal.coverage_over_resplits(outcome, probability, 200, 0.9, 30, seed=0)
    assert found == pytest.approx(0.9, abs=0.01)


def test_sets_and_coverage_agree():
    outcome, probability = draw(300)
    inside = conformal.covered(outcome, probability, 0.6)
    names = np.where(outcome == 1, "poor", "good")
    expected = [name in prediction_set(p, 0.6) for name, p in zip(names, probability, strict=True)]
    assert (inside == expected).all()


def test_the_coverage_interval_is_the_exact_binomial_one():
    low, high = conformal.clopper_pearson(43, 50, 0.99)
    reference = binomtest(43, 50).proportion_ci(0.99, method="exact")
    assert (low, high) == pytest.approx((reference.low, reference.high))
    assert conformal.clopper_pearson(0, 10, 0.99)[0] == 0.0
    assert conformal.clopper_pearson(10, 10, 0.99)[1] == 1.0


@pytest.mark.parametrize(
    ("hits", "n", "verdict"),
    [(43, 50, "as promised"), (30, 50, "too low"), (4000, 4100, "too high"), (2, 6, "too few to tell")],
)
def test_a_subgroup_fails_only_when_its_99_percent_interval_excludes_the_target(hits, n, verdict):
    inside = np.arange(n) < hits
    assert conformal.coverage_of("sex", "F", inside, 0.9, 0.99).verdict == verdict


def test_net_benefit_by_hand():
    outcome, probability = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.3, 0.8, 0.2, 0.1])
    assert decision.net_benefit(outcome, probability, 0.25) == pytest.approx(2 / 5 - 1 / 5 / 3)
    assert decision.net_benefit(outcome, probability, 0.5) == pytest.approx(0.0)


def test_treating_everybody_is_worth_nothing_at_the_prevalence():
    outcome = np.array([1] * 3 + [0] * 7)
    curve = decision.decision_curve(outcome, np.full(10, 0.3), None, thresholds=(0.3,))
    assert curve.treat_all[0] == pytest.approx(0.0, abs=1e-12)
    assert curve.astral is None


def test_shapley_values_equal_the_mean_over_all_orders():
    names = ("image", "text", "table")
    generator = np.random.default_rng(0)
    value = {subset: float(generator.random()) for subset in subsets_of(names)}
    known = {**value, frozenset(): 0.33}
    expected = dict.fromkeys(names, 0.0)
    for order in permutations(names):
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            expected[name] += (known[before | {name}] - known[before]) / 6
    assert shapley(names, value, 0.33) == pytest.approx(expected)


@pytest.mark.parametrize("names", [("image",), ("text", "table"), ("image", "text", "table")])
def test_shapley_values_add_up_to_the_distance_from_the_prevalence(names):
    value = {subset: 0.1 + 0.2 * len(subset) for subset in subsets_of(names)}
    shares = shapley(names, value, 0.4)
    assert sum(shares.values()) == pytest.approx(value[frozenset(names)] - 0.4)


def test_a_modality_that_changes_nothing_has_share_zero():
    value = {subset: 0.7 if "image" in subset else 0.3 for subset in subsets_of(("image", "text"))}
    assert shapley(("image", "text"), value, 0.3) == pytest.approx({"image": 0.4, "text": 0.0})


def test_calibration_survives_the_file_and_damage_is_named(tmp_path):
    path = tmp_path / "calibration.json"
    with pytest.raises(BundleError, match="does not exist"):
        Calibration.load(path)
    path.write_text(Calibration(temperature=1.4, threshold=0.31).model_dump_json())
    assert Calibration.load(path).temperature == 1.4
    path.write_text('{"temperature": -1}')
    with pytest.raises(BundleError, match="damaged"):
        Calibration.load(path)
