"""Split-conformal prediction sets: a promise about coverage that holds whatever the model is."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from willis.evaluation.metrics import Numbers
from willis.evaluation.results import ConformalResult, Coverage
from willis.models.decision import prediction_set

SUBGROUP_CONFIDENCE = 0.99
MIN_GROUP = 10


def fit_quantile(outcome: npt.ArrayLike, probability: npt.ArrayLike, coverage: float) -> float:
    """Find the quantile of 1 - P(true class) that promises `coverage` (calibration patients only).

    Returns:
        The ceil((n + 1) coverage)-th smallest score; 1 (every class stays in every set) when n is too
        small to promise anything.

    Reference:
        Vovk, Gammerman, Shafer (2005); Angelopoulos and Bates, arXiv 2107.07511, section 1.
    """
    scores = _nonconformity(outcome, probability)
    rank = int(np.ceil((scores.size + 1) * coverage))
    return 1.0 if rank > scores.size else float(np.sort(scores)[rank - 1])


def covered(outcome: npt.ArrayLike, probability: npt.ArrayLike, quantile: float) -> npt.NDArray[np.bool_]:
    """True where the set holds the true class, shape (n,)."""
    return np.asarray(_nonconformity(outcome, probability) <= quantile)


def coverage_over_resplits(
    outcome: Numbers, probability: Numbers, num_calibration: int, coverage: float, num_seeds: int, seed: int
) -> float | None:
    """Mean coverage when calibration and test patients are dealt anew `num_seeds` times.

    One split's coverage wobbles by its own draw of calibration patients; the mean over deals is what the
    promise is about. The bundle's quantile is not touched by this.
    """
    if not 0 < num_calibration < outcome.size:
        return None
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(num_seeds):
        order = generator.permutation(outcome.size)
        fit, rest = order[:num_calibration], order[num_calibration:]
        quantile = fit_quantile(outcome[fit], probability[fit], coverage)
        found.append(covered(outcome[rest], probability[rest], quantile).mean())
    return float(np.mean(found))


def coverage_of(
    group: str, level: str, inside: npt.NDArray[np.bool_], target: float, confidence: float
) -> Coverage:
    """Coverage of one group with its exact binomial interval; it fails only when that excludes the target."""
    low, high = clopper_pearson(int(inside.sum()), inside.size, confidence)
    return Coverage(
        group=group,
        level=level,
        num_patients=inside.size,
        coverage=float(inside.mean()),
        low=low,
        high=high,
        verdict=_verdict(inside.size, low, high, target),
    )


def conformal_result(
    outcome: Numbers,
    probability: Numbers,
    *,
    quantile: float,
    target: float,
    num_calibration: int,
    groups: Sequence[tuple[str, str, npt.NDArray[np.bool_]]],
    over_resplits: float | None,
    confidence: float,
) -> ConformalResult:
    """Coverage on the test patients, overall and by subgroup (99 % intervals there)."""
    inside = covered(outcome, probability, quantile)
    certain = [len(prediction_set(float(p), quantile)) == 1 for p in probability]
    return ConformalResult(
        target=target,
        quantile=quantile,
        num_calibration=num_calibration,
        overall=coverage_of("all", "all", inside, target, confidence),
        share_certain=float(np.mean(certain)),
        over_resplits=over_resplits,
        subgroups=tuple(
            coverage_of(group, level, inside[member], target, SUBGROUP_CONFIDENCE)
            for group, level, member in groups
            if member.any()
        ),
    )


def clopper_pearson(num_hits: int, num_trials: int, confidence: float) -> tuple[float, float]:
    """Exact binomial interval of a share."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if num_hits == 0 else float(beta.ppf(tail, num_hits, num_trials - num_hits + 1))
    high = 1.0 if num_hits == num_trials else float(beta.ppf(1 - tail, num_hits + 1, num_trials - num_hits))
    return low, high


def _nonconformity(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> Numbers:
    y, p = np.asarray(outcome, np.float64), np.asarray(probability, np.float64)
    return np.where(y == 1, 1 - p, p)


def _verdict(num_patients: int, low: float, high: float, target: float) -> str:
    if num_patients < MIN_GROUP:
        return "too few to tell"
    if high < target:
        return "too low"
    return "too high" if low > target else "as promised"
