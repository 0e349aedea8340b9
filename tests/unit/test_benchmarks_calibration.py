"""The benchmark of calibration: coverage by group, resampled over deals and patients."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.calibration import Deal, calibration_error, coverage, mean_slope
from benchmarks.learning_curve import Patients

NUM_DEALS, NUM_PATIENTS = 10, 1000
EVERYBODY = [np.ones(NUM_PATIENTS, bool)] * NUM_DEALS


def deals_of(inside: np.ndarray) -> list[Deal]:
    """Deals that test the same patients, whose sets hold the truth where `inside` says so."""
    frame = pd.DataFrame({"patient_id": [f"sub-{k:04d}" for k in range(inside.shape[1])]})
    outcome = np.ones(inside.shape[1])
    return [Deal(frame, outcome, {"all": row.astype(float)}, quantile=0.5) for row in inside]


def test_coverage_of_a_group_is_the_mean_over_its_patients_and_deals() -> None:
    inside = np.ones((NUM_DEALS, NUM_PATIENTS), bool)
    inside[:5, :100] = False
    first = np.arange(NUM_PATIENTS) < 200

    assert coverage(deals_of(inside), "all", [first] * NUM_DEALS)["mean"] == pytest.approx(0.75)
    assert coverage(deals_of(inside), "all", [~first] * NUM_DEALS)["mean"] == 1.0


def test_sets_that_keep_their_promise_are_not_blamed_and_those_that_break_it_are() -> None:
    draw = np.random.default_rng(2).random((NUM_DEALS, NUM_PATIENTS))

    kept, broken = (coverage(deals_of(draw < share), "all", EVERYBODY) for share in (0.9, 0.8))

    assert kept["low_99"] < 0.9 < kept["high_99"]
    assert broken["high_99"] < 0.9


def test_deals_that_differ_widen_the_interval_as_far_as_ten_of_them_tell() -> None:
    inside = np.zeros((NUM_DEALS, NUM_PATIENTS), bool)
    inside[:5] = True

    found = coverage(deals_of(inside), "all", EVERYBODY)

    # the mean of ten tosses of a fair coin has a standard deviation of .158
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.158, abs=0.05)


def test_a_patient_of_every_deal_counts_once_and_not_ten_times() -> None:
    inside = np.tile(np.arange(NUM_PATIENTS) % 10 != 0, (NUM_DEALS, 1))

    found = coverage(deals_of(inside), "all", EVERYBODY)

    # a share of .9 of 1,000 patients has a standard error of .0095, of 10,000 it would have .003
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.0095, abs=0.006)


def test_each_deal_tests_as_many_patients_and_another_seed_others() -> None:
    outcome = {f"sub-{k}": float(k % 2) for k in range(30)}
    patients = Patients(tuple(list(outcome)[10:]), tuple(list(outcome)[:10]), outcome)

    first, second = patients.dealt(0), patients.dealt(1)

    assert len(first.tested) == len(second.tested) == 10
    assert first == patients.dealt(0)
    assert set(first.tested) != set(second.tested)
    assert set(first.tested) | set(first.pool) == set(outcome)
    assert not set(first.tested) & set(first.pool)


def test_a_perfect_model_stays_within_what_chance_allows_and_an_overconfident_one_does_not() -> None:
    random = np.random.default_rng(3)
    log_odds = random.normal(0, 1, NUM_PATIENTS)
    perfect = 1 / (1 + np.exp(-log_odds))
    outcome = (random.random(NUM_PATIENTS) < perfect).astype(float)
    overconfident = 1 / (1 + np.exp(-3 * log_odds))

    found = calibration_error([(outcome, perfect), (outcome, overconfident)])

    assert found["times_within"] == 1
    slopes = [mean_slope([(outcome, p)])["mean"] for p in (perfect, overconfident)]
    assert slopes == pytest.approx([1.0, 1 / 3], abs=0.2)
