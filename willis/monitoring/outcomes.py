"""How good predictions turned out, once outcomes arrived.

Free of Evidently and scikit-learn, so that serving may import it.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from willis.monitoring.results import Performance

if TYPE_CHECKING:
    import pandas as pd

Numbers = NDArray[np.float64]
MIN_OF_EACH = 5
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


def performance(window: "pd.DataFrame", min_outcomes: int, seed: int = 7) -> Performance:
    """Measure AUC and Brier score of a window's predictions against the outcomes known by now.

    Args:
        window: rows of the prediction log; `p` and `poor_outcome` (NaN until known) are read.
        min_outcomes: fewer known outcomes than this say nothing.
        seed: of the bootstrap behind the intervals (95 %, percentile, over predictions).

    Returns:
        Figures with intervals, or None with the reason.
    """
    p, poor = _known(window)
    counts = {"num_predictions": len(window), "num_outcomes": len(p), "num_poor": int(poor.sum())}
    if len(p) < min_outcomes:
        return Performance(**counts, reason=f"{len(p)} outcomes have arrived; {min_outcomes} are needed")
    squares = (p - poor) ** 2
    draws = np.random.default_rng(seed).integers(len(p), size=(NUM_RESAMPLES, len(p)))
    brier_low, brier_high = _interval(squares[draws].mean(axis=1))
    base = Performance(
        **counts,
        brier=float(squares.mean()),
        brier_low=brier_low,
        brier_high=brier_high,
        mean_probability=float(p.mean()),
        share_poor=float(poor.mean()),
    )
    num_poor = int(poor.sum())
    if min(num_poor, len(p) - num_poor) < MIN_OF_EACH:
        reason = f"{num_poor} of {len(p)} outcomes are poor; an AUC needs {MIN_OF_EACH} of each class"
        return base.model_copy(update={"reason": reason})
    areas = np.array([area_under_curve(p[draw], poor[draw]) for draw in draws])
    low, high = _interval(areas[~np.isnan(areas)])
    return base.model_copy(update={"auc": area_under_curve(p, poor), "auc_low": low, "auc_high": high})


def area_under_curve(p: Numbers, poor: Numbers) -> float:
    """Return P(p of a poor outcome > p of a good one), ties counted half; NaN with one class only.

    Reference:
        Mann-Whitney U over mid-ranks.
    """
    num_poor = poor.sum()
    num_good = len(poor) - num_poor
    if not num_poor or not num_good:
        return float("nan")
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(count)
    ranks = (last_rank - (count - 1) / 2)[place]
    return float((ranks[poor == 1].sum() - num_poor * (num_poor + 1) / 2) / (num_poor * num_good))


def _known(window: "pd.DataFrame") -> tuple[Numbers, Numbers]:
    if len(window) == 0:
        return np.empty(0), np.empty(0)
    p = window["p"].to_numpy(dtype=np.float64)
    poor = window["poor_outcome"].to_numpy(dtype=np.float64)
    known = ~np.isnan(p) & ~np.isnan(poor)
    return p[known], poor[known]


def _interval(draws: Numbers) -> tuple[float, float]:
    edges = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = np.quantile(draws, edges)
    return float(low), float(high)
