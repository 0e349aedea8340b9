"""Discrimination: AUC with DeLong and bootstrap intervals, AUPRC, metrics at one threshold.

`outcome` is 0 or 1 per patient, `score` any number that rises with risk. A bootstrap is a matrix of counts
`(num_resamples, num_patients)`: how often each patient stands in each resample. Models that share the matrix
are compared on the same resamples, which is what makes their differences paired.
"""

from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from willis.errors import CohortError, ShapeError
from willis.evaluation.results import Interval, ThresholdMetrics

Numbers: TypeAlias = npt.NDArray[np.float64]


def checked(outcome: npt.ArrayLike, score: npt.ArrayLike, place: str) -> tuple[Numbers, Numbers]:
    """Return both as float64 after checking what every metric needs.

    Args:
        outcome: (n,) zeros and ones.
        score: (n,) finite numbers.
        place: which patients these are, for the message.

    Raises:
        ShapeError: lengths differ, or a score is not finite.
        CohortError: an outcome other than 0 and 1, or one class only.
    """
    y, p = np.asarray(outcome, np.float64), np.asarray(score, np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise ShapeError(f"outcome has shape {y.shape}, score {p.shape}; both must be (n,) ({place})")
    if not np.isfinite(p).all():
        raise ShapeError(f"{int((~np.isfinite(p)).sum())} of {p.size} scores are not finite ({place})")
    if not np.isin(y, (0, 1)).all():
        raise CohortError(f"outcomes hold {np.unique(y)[:5]}; each must be 0 or 1 ({place})")
    num_poor = int(y.sum())
    if num_poor in (0, y.size):
        raise CohortError(
            f"{num_poor} of {y.size} outcomes are poor; both classes must occur ({place}); "
            "add patients with an outcome or change ingest.splits"
        )
    return y, p


def auc(outcome: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the area under the ROC curve, ties counted half (Mann-Whitney by midranks)."""
    y, p = checked(outcome, score, "AUC")
    num_poor = y.sum()
    rank_sum = _midranks(p)[y == 1].sum()
    return float((rank_sum - num_poor * (num_poor + 1) / 2) / (num_poor * (y.size - num_poor)))


def delong_components(outcome: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Numbers, Numbers]:
    """AUC of each of k scores on the same patients, and their covariance.

    Args:
        outcome: (n,) zeros and ones.
        scores: (k, n).

    Returns:
        AUCs (k,) and their covariance (k, k).

    Reference:
        DeLong, DeLong, Clarke-Pearson, Biometrics 44:837 (1988); midranks as in Sun and Xu (2014).
    """
    stacked = np.atleast_2d(np.asarray(scores, np.float64))
    y = checked(outcome, stacked[0], "DeLong")[0]
    poor, good = stacked[:, y == 1], stacked[:, y == 0]
    m, n = poor.shape[1], good.shape[1]
    if min(m, n) < 2:
        raise CohortError(f"{m} poor and {n} good outcomes; DeLong needs at least 2 of each")
    ranks = np.stack([_midranks(row) for row in np.hstack([poor, good])])
    of_poor = (ranks[:, :m] - np.stack([_midranks(row) for row in poor])) / n
    of_good = 1 - (ranks[:, m:] - np.stack([_midranks(row) for row in good])) / m
    covariance = np.atleast_2d(np.cov(of_poor)) / m + np.atleast_2d(np.cov(of_good)) / n
    return of_poor.mean(axis=1), covariance


def delong_interval(outcome: npt.ArrayLike, score: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the AUC with DeLong's normal interval, cut at 0 and 1."""
    values, covariance = delong_components(outcome, score)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.sqrt(covariance[0, 0]))
    value = float(values[0])
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def average_precision(outcome: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the area under the precision-recall curve as a step sum; ties enter together."""
    y, p = checked(outcome, score, "AUPRC")
    return float(average_precision_of_resamples(y, p, np.ones((1, y.size)))[0])


def best_threshold(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Return the threshold with the largest sensitivity + specificity (Youden), for validation patients.

    The threshold lies half-way between the two neighbouring probabilities, so that it does not hang on one
    patient's last digit; `probability >= threshold` means poor.
    """
    y, p = checked(outcome, probability, "threshold")
    values = np.unique(p)
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    called = p[None, :] >= cuts[:, None]
    youden = called[:, y == 1].mean(axis=1) - called[:, y == 0].mean(axis=1)
    return float(cuts[int(np.argmax(youden))])


def threshold_metrics(
    outcome: npt.ArrayLike, probability: npt.ArrayLike, threshold: float, counts: Numbers, confidence: float
) -> ThresholdMetrics:
    """Accuracy, F1, sensitivity and specificity at `threshold`, each with its bootstrap interval."""
    y, p = checked(outcome, probability, "metrics at a threshold")
    value = at_threshold_of_resamples(y, p, threshold, np.ones((1, y.size)))[0]
    draws = at_threshold_of_resamples(y, p, threshold, counts)
    found = [percentile_interval(float(value[k]), draws[:, k], confidence) for k in range(4)]
    return ThresholdMetrics(
        threshold=threshold, accuracy=found[0], f1=found[1], sensitivity=found[2], specificity=found[3]
    )


def bootstrap_counts(num_patients: int, num_resamples: int, seed: int) -> Numbers:
    """Draw resamples of patients with replacement.

    Returns:
        (num_resamples, num_patients) counts; every row adds up to num_patients.
    """
    generator = np.random.default_rng(seed)
    share = np.full(num_patients, 1 / num_patients)
    return generator.multinomial(num_patients, share, size=num_resamples).astype(np.float64)


def auc_of_resamples(outcome: Numbers, score: Numbers, counts: Numbers) -> Numbers:
    """AUC in every resample; NaN where a resample holds one class only.

    Args:
        outcome: (n,) zeros and ones.
        score: (n,).
        counts: (b, n) how often each patient stands in each resample.

    Returns:
        (b,)
    """
    poor, good = outcome == 1, outcome == 0
    a, b = score[poor][:, None], score[good][None, :]
    wins = (a > b) + 0.5 * (a == b)
    in_poor, in_good = counts[:, poor], counts[:, good]
    pairs = in_poor.sum(axis=1) * in_good.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(((in_poor @ wins) * in_good).sum(axis=1) / pairs)


def average_precision_of_resamples(outcome: Numbers, score: Numbers, counts: Numbers) -> Numbers:
    """Average precision in every resample, shape (b,); NaN where nobody has a poor outcome."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), ordered.size - 1)
    weights = counts[:, order]
    called = np.cumsum(weights, axis=1)[:, last_of_tie]
    hits = np.cumsum(weights * outcome[order], axis=1)[:, last_of_tie]
    with np.errstate(invalid="ignore"):
        recall = hits / hits[:, -1:]
        precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
        return np.asarray((np.diff(recall, axis=1, prepend=0) * precision).sum(axis=1))


def at_threshold_of_resamples(
    outcome: Numbers, probability: Numbers, threshold: float, counts: Numbers
) -> Numbers:
    """Accuracy, F1, sensitivity, specificity in every resample, shape (b, 4); NaN where undefined."""
    called = (probability >= threshold).astype(np.float64)
    cells = np.stack(
        [called * outcome, called * (1 - outcome), (1 - called) * outcome, (1 - called) * (1 - outcome)]
    )
    hit, false_alarm, missed, spared = (counts @ cells.T).T
    total = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hit / (2 * hit + false_alarm + missed)
        return np.stack(
            [(hit + spared) / total, f1, hit / (hit + missed), spared / (spared + false_alarm)], axis=1
        )


def percentile_interval(value: float, draws: Numbers, confidence: float) -> Interval:
    """Put the bootstrap's percentile interval around `value`; undefined draws are left out."""
    usable = draws[np.isfinite(draws)]
    if usable.size == 0:
        return Interval(value=value, low=value, high=value)
    tail = (1 - confidence) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))


def _midranks(values: Numbers) -> Numbers:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray(((last - count + 1 + last) / 2)[inverse], np.float64)
