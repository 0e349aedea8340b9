"""Resampled thresholds: the statistics against scipy, and how often chance alone rings."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon as scipy_jensenshannon
from scipy.stats import binom, wasserstein_distance

from tests.watched_rows import patient_rows
from willis.monitoring.reference import (
    WatchedColumn,
    as_categories,
    as_numbers,
    categories_of,
    embedding_columns,
    watched_columns,
)
from willis.monitoring.windows import (
    MAX_EXCESS,
    Resamples,
    chance_excess,
    column_limits,
    embedding_limits,
    excess,
    jensenshannon,
    resampled_distance,
    resampled_jensenshannon,
    resampled_wasserstein,
)
from willis.params import MonitorParams

ROWS, WINDOW, DRAWS = 40, 25, 100


@pytest.fixture(scope="module")
def resamples() -> Resamples:
    return Resamples.draw(ROWS, WINDOW, DRAWS, seed=3)


def drawn(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The slow road: write every row out as often as it was drawn, then drop what is missing."""
    rows = np.repeat(values, counts, axis=0)
    return rows[~pd.isna(rows)] if rows.ndim == 1 else rows


def test_the_distance_of_numbers_is_scipys_over_the_references_deviation(resamples: Resamples) -> None:
    values = np.random.default_rng(0).lognormal(size=ROWS)
    values[[3, 17]] = np.nan
    values[5] = values[6]
    found = resampled_wasserstein(values, resamples)
    for k in range(DRAWS):
        reference, window = drawn(values, resamples.reference[k]), drawn(values, resamples.window[k])
        slow = wasserstein_distance(reference, window) / max(reference.std(), 0.001)
        assert found[k] == pytest.approx(slow, abs=1e-10)


def test_numbers_that_never_vary_have_no_distance(resamples: Resamples) -> None:
    assert resampled_wasserstein(np.full(ROWS, 4.4e-4), resamples) == pytest.approx(np.zeros(DRAWS))


def test_the_distance_of_categories_is_scipys(resamples: Resamples) -> None:
    values = pd.Series(np.random.default_rng(1).choice(["left", "right", "both", None], ROWS))
    found = resampled_jensenshannon(as_categories(values), resamples)
    levels = sorted(set(values.dropna()))
    for k in range(DRAWS):
        sides = []
        for counts, unseen in (
            (resamples.reference[k], resamples.unseen_reference[k]),
            (resamples.window[k], resamples.unseen_window[k]),
        ):
            rows = drawn(values.to_numpy(), counts)
            sides.append([float((rows == level).sum()) for level in levels] + [float(unseen)])
        assert found[k] == pytest.approx(scipy_jensenshannon(*sides), abs=1e-7)


def test_two_shares_that_have_nothing_in_common_are_the_root_of_log_two_apart() -> None:
    assert jensenshannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.sqrt(np.log(2)))


def test_the_distance_of_embeddings_is_that_of_their_means(resamples: Resamples) -> None:
    values = np.random.default_rng(2).normal(size=(ROWS, 5))
    found = resampled_distance(values, resamples)
    for k in range(DRAWS):
        then, now = drawn(values, resamples.reference[k]), drawn(values, resamples.window[k])
        assert found[k] == pytest.approx(np.linalg.norm(then.mean(0) - now.mean(0)), abs=1e-10)


def test_the_threshold_of_a_category_lets_a_rare_new_value_pass() -> None:
    reference = pd.DataFrame({"sex": ["F"] * 60})
    resamples = Resamples.draw(60, 60, 2000, seed=0)
    limit = column_limits(WatchedColumn("sex", "table", "category"), reference, resamples, 0.99).statistic
    assert limit is not None
    once, often = ([59.0, 1.0], [50.0, 10.0])
    assert scipy_jensenshannon([60.0, 0.0], once) < limit < scipy_jensenshannon([60.0, 0.0], often)


def test_an_excess_is_counted_in_thresholds_and_capped() -> None:
    assert excess(np.array([0.0, 0.2, 0.3, 9.0, np.nan]), 0.2).tolist() == pytest.approx(
        [0, 0, 0.5, MAX_EXCESS, 0]
    )


def test_a_larger_window_has_a_lower_threshold() -> None:
    reference = patient_rows(120, seed=5)
    column = WatchedColumn("f_volume_ml", "facts", "number")
    limits = [
        column_limits(column, reference, Resamples.draw(120, size, 400, seed=0), 0.99).statistic
        for size in (30, 120, 600)
    ]
    assert limits == sorted(limits, reverse=True)
    assert None not in limits


def test_the_same_seed_gives_the_same_thresholds() -> None:
    reference = patient_rows(50, seed=5)
    first, second = (embedding_limits(reference, Resamples.draw(50, 40, 200, seed=9), 0.99) for _ in range(2))
    assert first.statistic == second.statistic


def test_ordinary_columns_ring_about_as_often_as_the_quantile_says() -> None:
    """Windows of fresh patients, each against a fresh reference: independent, so binomial."""
    num_pairs, size, ringing, compared = 30, 80, 0, 0
    for pair in range(num_pairs):
        reference, window = patient_rows(size, 1000 + pair), patient_rows(size, 5000 + pair)
        resamples = Resamples.draw(size, size, 200, seed=pair)
        for name in ("age", "bmi", "f_dwi_ratio"):
            limit = column_limits(WatchedColumn(name, "table", "number"), reference, resamples, 0.95)
            then, now = reference[name].dropna(), window[name].dropna()
            assert limit.statistic is not None
            ringing += wasserstein_distance(then, now) / then.std(ddof=0) > limit.statistic
            compared += 1
    # Twice the nominal share is the most that may be hidden: a bootstrap of 80 rows is no population.
    assert ringing <= binom.ppf(0.999, compared, 0.10)


def test_the_chance_of_a_summed_excess_grows_with_the_columns() -> None:
    reference = patient_rows(60, seed=1)
    resamples = Resamples.draw(60, 60, 300, seed=0)
    limits = [column_limits(c, reference, resamples, 0.99) for c in watched_columns(reference)]
    assert 0 < chance_excess(limits[:10], 0.99) <= chance_excess(limits, 0.99)


def verdicts(reference: pd.DataFrame, windows: list[pd.DataFrame], params: MonitorParams) -> list[bool]:
    """The monitor's rule with scipy in Evidently's place; tests/integration holds the two equal."""
    size = len(windows[0])
    resamples = Resamples.draw(len(reference), size, params.num_resamples, params.seed)
    watched = watched_columns(reference)
    limits = [column_limits(c, reference, resamples, params.quantile) for c in watched]
    limits.append(embedding_limits(reference, resamples, params.quantile))
    chance = chance_excess(limits, params.quantile)
    found = []
    for window in windows:
        assert len(window) == size
        values = [slow_statistic(c, reference, window) for c in watched]
        names = embedding_columns(reference)
        values.append(float(np.linalg.norm(reference[names].mean() - window[names].mean())))
        pairs = [(v, limit.statistic) for v, limit in zip(values, limits, strict=True) if limit.statistic]
        beyond = np.array([excess(np.array(value), limit).item() for value, limit in pairs])
        found.append(bool((beyond > 0).mean() >= params.drift_share and beyond.sum() > chance))
    return found


def slow_statistic(column: WatchedColumn, reference: pd.DataFrame, window: pd.DataFrame) -> float:
    if column.kind == "number":
        then, now = (as_numbers(frame[column.name]) for frame in (reference, window))
        then, now = then[~np.isnan(then)], now[~np.isnan(now)]
        return float(wasserstein_distance(then, now) / max(then.std(), 0.001))
    counts = [categories_of(column, frame[column.name]).value_counts() for frame in (reference, window)]
    levels = sorted(set(counts[0].index) | set(counts[1].index))
    if not levels:
        return 0.0
    return float(scipy_jensenshannon(*(count.reindex(levels).fillna(0) for count in counts)))


def test_of_forty_ordinary_windows_hardly_one_drifts() -> None:
    """Eight references of the demo's size, five windows each; 2 % is what a quantile of 99 % may cost."""
    false_alarms = 0
    for k in range(8):
        windows = [patient_rows(80, 7000 + 10 * k + w) for w in range(5)]
        false_alarms += sum(verdicts(patient_rows(60, 1000 + k), windows, MonitorParams()))
    assert false_alarms <= binom.ppf(0.995, 40, 0.02)


@pytest.mark.parametrize("size", [40, 80, 160])
def test_every_window_of_a_new_scanner_drifts(size: int) -> None:
    windows = [patient_rows(size, 9000 + w, new_scanner=True) for w in range(3)]
    assert all(verdicts(patient_rows(60, 1000 + size), windows, MonitorParams()))
