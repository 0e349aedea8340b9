"""Discrimination against sklearn, a slow DeLong and numbers worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from willis.errors import CohortError, ShapeError
from willis.evaluation import metrics


@pytest.fixture
def sample():
    generator = np.random.default_rng(3)
    outcome = (generator.random(60) < 0.4).astype(float)
    score = np.round(outcome * 0.5 + generator.normal(size=60), 1)  # rounding makes ties
    return outcome, score


def slow_delong(outcome, first, second):
    """DeLong's covariance by its definition: every pair of a poor and a good patient."""

    def components(score):
        poor, good = score[outcome == 1], score[outcome == 0]
        wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in good] for a in poor])
        return wins.mean(axis=1), wins.mean(axis=0), wins.mean()

    a10, a01, area_a = components(first)
    b10, b01, area_b = components(second)
    m, n = len(a10), len(a01)
    in_poor = sum((x - area_a) * (y - area_b) for x, y in zip(a10, b10, strict=True)) / (m - 1)
    in_good = sum((x - area_a) * (y - area_b) for x, y in zip(a01, b01, strict=True)) / (n - 1)
    return in_poor / m + in_good / n


def test_auc_equals_sklearn_with_ties(sample):
    assert metrics.auc(*sample) == pytest.approx(roc_auc_score(*sample), abs=1e-12)


def test_average_precision_equals_sklearn_with_ties(sample):
    assert metrics.average_precision(*sample) == pytest.approx(average_precision_score(*sample), abs=1e-12)


def test_delong_covariance_equals_the_slow_definition(sample):
    outcome, first = sample
    second = first + np.random.default_rng(1).normal(size=first.size).round(1)
    areas, covariance = metrics.delong_components(outcome, np.stack([first, second]))
    assert areas == pytest.approx([roc_auc_score(outcome, first), roc_auc_score(outcome, second)])
    for i, a in enumerate((first, second)):
        for j, b in enumerate((first, second)):
            assert covariance[i, j] == pytest.approx(slow_delong(outcome, a, b), abs=1e-12)


def test_delong_interval_is_two_standard_errors_wide_and_stays_within_0_and_1(sample):
    outcome, score = sample
    found = metrics.delong_interval(outcome, score, 0.95)
    error = slow_delong(outcome, score, score) ** 0.5
    assert found.high - found.value == pytest.approx(1.959964 * error, abs=1e-6)
    perfect = metrics.delong_interval(outcome, outcome + 0.0)
    assert (perfect.value, perfect.high) == (1.0, 1.0)


def test_resamples_measure_what_repeating_patients_would(sample):
    outcome, score = sample
    counts = metrics.bootstrap_counts(outcome.size, 5, seed=0)
    areas = metrics.auc_of_resamples(outcome, score, counts)
    precisions = metrics.average_precision_of_resamples(outcome, score, counts)
    cells = metrics.at_threshold_of_resamples(outcome, score, 0.4, counts)
    for row in range(5):
        drawn = np.repeat(np.arange(outcome.size), counts[row].astype(int))
        y, p = outcome[drawn], score[drawn]
        assert areas[row] == pytest.approx(roc_auc_score(y, p))
        assert precisions[row] == pytest.approx(average_precision_score(y, p))
        assert cells[row, 0] == pytest.approx(np.mean((p >= 0.4) == y))
        assert cells[row, 1] == pytest.approx(f1_score(y, p >= 0.4))


def test_a_resample_of_one_class_is_left_out_of_the_interval():
    outcome, score = np.array([1.0, 0.0, 0.0]), np.array([0.9, 0.2, 0.3])
    draws = metrics.auc_of_resamples(outcome, score, np.array([[0.0, 2, 1], [1, 1, 1]]))
    assert np.isnan(draws[0])
    assert metrics.percentile_interval(1.0, draws, 0.95).low == 1.0


def test_bootstrap_counts_repeat_for_a_seed_and_add_up():
    first, second = (metrics.bootstrap_counts(30, 50, seed=4) for _ in range(2))
    assert (first == second).all()
    assert (first.sum(axis=1) == 30).all()


def test_the_threshold_lies_between_the_classes():
    outcome, probability = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.4, 0.6, 0.9])
    assert metrics.best_threshold(outcome, probability) == pytest.approx(0.5)


def test_metrics_at_a_threshold_by_hand():
    outcome = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    probability = np.array([0.9, 0.8, 0.2, 0.7, 0.1, 0.1, 0.1, 0.1])
    found = metrics.threshold_metrics(outcome, probability, 0.5, np.ones((1, 8)), 0.95)
    assert found.sensitivity.value == pytest.approx(2 / 3)
    assert found.specificity.value == pytest.approx(4 / 5)
    assert found.accuracy.value == pytest.approx(6 / 8)
    assert found.f1.value == pytest.approx(4 / 6)


def test_one_class_only_is_refused_with_the_count():
    with pytest.raises(CohortError, match="0 of 4 outcomes are poor"):
        metrics.auc([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ShapeError, match="1 of 2 scores are not finite"):
        metrics.auc([0, 1], [0.1, np.nan])


def test_lengths_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"outcome has shape \(2,\), score \(3,\)"):
        metrics.auc([0, 1], [0.1, 0.2, 0.3])
