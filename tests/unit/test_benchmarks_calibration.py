"""The benchmark of calibration: coverage by group, resampled over seeds and patients."""

import numpy as np
import pytest

from benchmarks.calibration import calibration_error, coverage, mean_slope
from willis.evaluation.metrics import bootstrap_counts

NUM_SEEDS, NUM_PATIENTS = 10, 1000


@pytest.fixture
def counts() -> np.ndarray:
    return bootstrap_counts(NUM_PATIENTS, 2000, seed=1)


def test_coverage_of_a_group_is_the_mean_over_its_patients_and_seeds(counts: np.ndarray) -> None:
    inside = np.ones((NUM_SEEDS, NUM_PATIENTS), bool)
    inside[:5, :100] = False
    first = np.arange(NUM_PATIENTS) < 200

    assert coverage(inside, first, counts)["mean"] == pytest.approx(0.75)
    assert coverage(inside, ~first, counts)["mean"] == 1.0


def test_sets_that_keep_their_promise_are_not_blamed_and_those_that_break_it_are(counts: np.ndarray) -> None:
    draw = np.random.default_rng(2).random((NUM_SEEDS, NUM_PATIENTS))
    everybody = np.ones(NUM_PATIENTS, bool)

    kept, broken = (coverage(draw < share, everybody, counts) for share in (0.9, 0.8))

    assert kept["low_99"] < 0.9 < kept["high_99"]
    assert broken["high_99"] < 0.9


def test_seeds_that_differ_widen_the_interval_as_far_as_ten_seeds_tell(counts: np.ndarray) -> None:
    everybody = np.ones(NUM_PATIENTS, bool)
    inside = np.zeros((NUM_SEEDS, NUM_PATIENTS), bool)
    inside[:5] = True

    found = coverage(inside, everybody, counts)

    # the mean of ten tosses of a fair coin has a standard deviation of .158
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.158, abs=0.05)


def test_a_perfect_model_stays_within_what_chance_allows_and_an_overconfident_one_does_not() -> None:
    random = np.random.default_rng(3)
    log_odds = random.normal(0, 1, NUM_PATIENTS)
    perfect = 1 / (1 + np.exp(-log_odds))
    outcome = (random.random(NUM_PATIENTS) < perfect).astype(float)
    overconfident = 1 / (1 + np.exp(-3 * log_odds))

    found = calibration_error(outcome, [perfect, overconfident])

    assert found["times_within"] == 1
    slopes = [mean_slope(outcome, [p])["mean"] for p in (perfect, overconfident)]
    assert slopes == pytest.approx([1.0, 1 / 3], abs=0.2)
