"""How far an ordinary window strays: the reference resampled, with Evidently's statistics in plain numpy.

A threshold must be the same test whatever the window's size. So the reference is resampled twice, as a
reference of its own size and as a window of the window's size, several hundred times; the statistic between
the two is what chance alone brings, and its quantile is the threshold. Rows are resampled whole, so that
columns which move together do so here, too.

How many columns ring says little by itself: a table has many columns, a new scanner moves few of them, far.
So the excess is weighed as well, summed over the columns, against what the resamples reach by chance:

    excess = min(max(statistic / threshold - 1, missing change / its threshold - 1, 0), 4)

Equations (F empirical distribution functions, s the reference's standard deviation, M the mean of p and q):

    wasserstein    integral |F_reference - F_window| dx / max(s, .001)
    jensenshannon  sqrt((KL(p|M) + KL(q|M)) / 2), natural logarithm
    distance       |mean embedding of the reference - mean embedding of the window|, Euclidean
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from willis.monitoring.reference import WatchedColumn, as_numbers, categories_of, embedding_columns

if TYPE_CHECKING:
    import pandas as pd

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]

SMALLEST_DEVIATION = 0.001
SLACK = 1e-9
MAX_EXCESS = 4.0
"""No column alone may count for more: a threshold can be tiny where the reference hardly varies."""

UNSEEN = 0.5
"""Pseudo-count of a category that the reference happens not to hold: rare is not the same as impossible."""


@dataclass(frozen=True)
class Resamples:
    """Row counts of resampled references and windows, each of shape (num_resamples, reference rows)."""

    reference: Counts
    window: Counts
    unseen_reference: Counts
    unseen_window: Counts

    @classmethod
    def draw(cls, num_reference: int, window_size: int, num_resamples: int, seed: int) -> "Resamples":
        """Draw rows with replacement; the same seed gives the same draws."""
        generator = np.random.default_rng(seed)
        even = np.full(num_reference, 1 / num_reference)
        rare = UNSEEN / (num_reference + UNSEEN)
        return cls(
            generator.multinomial(num_reference, even, size=num_resamples),
            generator.multinomial(window_size, even, size=num_resamples),
            generator.binomial(num_reference, rare, size=num_resamples),
            generator.binomial(window_size, rare, size=num_resamples),
        )


@dataclass(frozen=True)
class Limits:
    """What chance allows a column: its thresholds, and the excess of each resample, (num_resamples,)."""

    statistic: float | None
    missing: float
    excess: Numbers


def column_limits(
    column: WatchedColumn, reference: "pd.DataFrame", resamples: Resamples, quantile: float
) -> Limits:
    """Return the thresholds of one column.

    `statistic` is None when no resample held a value on both sides.
    """
    if column.kind == "number":
        values = as_numbers(reference[column.name])
        missing = np.isnan(values)
        drawn = resampled_wasserstein(values, resamples)
    else:
        categories = categories_of(column, reference[column.name])
        missing = categories.isna().to_numpy()
        drawn = resampled_jensenshannon(categories, resamples)
    return _limits(drawn, _resampled_missing(missing, resamples), quantile)


def embedding_limits(reference: "pd.DataFrame", resamples: Resamples, quantile: float) -> Limits:
    """Return the threshold of the embedding's distance."""
    values = reference[embedding_columns(reference)].to_numpy(dtype=np.float64)
    missing = np.isnan(values).any(axis=1)
    return _limits(resampled_distance(values, resamples), _resampled_missing(missing, resamples), quantile)


def resampled_wasserstein(values: Numbers, resamples: Resamples) -> Numbers:
    """Return Evidently's normed Wasserstein distance between each resampled reference and window.

    Args:
        values: the reference's column, shape (n,), NaN where missing.
        resamples: which rows each reference and window drew.

    Returns:
        Shape (num_resamples,); NaN where a side is empty.
    """
    present = np.flatnonzero(~np.isnan(values))
    order = present[np.argsort(values[present], kind="stable")]
    support = values[order]
    reference, window = _shares(resamples.reference[:, order]), _shares(resamples.window[:, order])
    between = np.abs(np.cumsum(reference - window, axis=1))[:, :-1] @ np.diff(support)
    mean = reference @ support
    deviation = np.sqrt(np.maximum(reference @ support**2 - mean**2, 0.0))
    distance: Numbers = between / np.maximum(deviation, SMALLEST_DEVIATION)
    return distance


def resampled_jensenshannon(categories: "pd.Series", resamples: Resamples) -> Numbers:
    """Return the Jensen-Shannon distance between each resampled reference and window, shape (num_resamples,).

    One more category, unseen in the reference, is drawn with a pseudo-count of `UNSEEN`.
    """
    codes, levels = categories.factorize()
    one_hot = (codes[:, None] == np.arange(len(levels))).astype(np.float64)
    reference = np.column_stack([resamples.reference @ one_hot, resamples.unseen_reference])
    window = np.column_stack([resamples.window @ one_hot, resamples.unseen_window])
    return jensenshannon(_shares(reference), _shares(window))


def jensenshannon(p: Numbers, q: Numbers) -> Numbers:
    """Return the Jensen-Shannon distance of each row of p and q, both of shape (..., categories)."""
    middle = (p + q) / 2

    def divergence(share: Numbers) -> Numbers:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(share > 0, share * np.log(share / middle), 0.0 * share)
        total: Numbers = terms.sum(axis=-1)
        return total

    distance: Numbers = np.sqrt(np.maximum(divergence(p) + divergence(q), 0.0) / 2)
    return distance


def resampled_distance(embeddings: Numbers, resamples: Resamples) -> Numbers:
    """Return the distance of mean embeddings between each resampled reference and window.

    Args:
        embeddings: shape (n, width); a row with a NaN counts as missing.
        resamples: which rows each reference and window drew.
    """
    present = np.flatnonzero(~np.isnan(embeddings).any(axis=1))
    reference, window = _shares(resamples.reference[:, present]), _shares(resamples.window[:, present])
    distance: Numbers = np.linalg.norm((reference - window) @ embeddings[present], axis=1)
    return distance


def excess(value: Numbers, threshold: float) -> Numbers:
    """Return how far values lie beyond their threshold, in thresholds: from 0 to MAX_EXCESS."""
    beyond: Numbers = np.clip(np.nan_to_num(value) / threshold - 1, 0, MAX_EXCESS)
    return beyond


def chance_excess(limits: "list[Limits]", quantile: float) -> float:
    """Return the summed excess that chance alone reaches, at the quantile of the resamples."""
    return float(np.quantile(np.sum([limit.excess for limit in limits], axis=0), quantile))


def _limits(statistics: Numbers, missing: Numbers, quantile: float) -> Limits:
    known = statistics[~np.isnan(statistics)]
    threshold = _just_above(known, quantile) if len(known) else None
    missing_threshold = _just_above(missing, quantile)
    beyond = excess(missing, missing_threshold)
    if threshold is not None:
        beyond = np.maximum(beyond, excess(statistics, threshold))
    return Limits(threshold, missing_threshold, beyond)


def _just_above(drawn: Numbers, quantile: float) -> float:
    # Evidently rings at >= and sums in another order: a tie must not ring, in either.
    return float(np.quantile(drawn, quantile, method="higher")) * (1 + SLACK) + SLACK


def _resampled_missing(missing: NDArray[np.bool_], resamples: Resamples) -> Numbers:
    """Absolute change of the share of missing values; never missing so far is not the same as impossible."""
    total_reference = resamples.reference.sum(axis=1) + resamples.unseen_reference
    total_window = resamples.window.sum(axis=1) + resamples.unseen_window
    absent = missing.astype(np.float64)
    # Whichever of missing and present the reference has not shown yet is the unseen one.
    sign = 1 if not missing.any() else 0
    reference = (resamples.reference @ absent + sign * resamples.unseen_reference) / total_reference
    window = (resamples.window @ absent + sign * resamples.unseen_window) / total_window
    change: Numbers = np.abs(reference - window)
    return change


def _shares(counts: Counts | Numbers) -> Numbers:
    total = counts.sum(axis=-1, keepdims=True).astype(np.float64)
    shares: Numbers = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return shares
