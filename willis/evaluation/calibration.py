"""Calibration: temperature, Brier, ECE beside what chance alone would show, slope and intercept."""

import numpy as np
import numpy.typing as npt

from willis.evaluation.metrics import Numbers, checked, percentile_interval
from willis.evaluation.results import CalibrationResult, ReliabilityBin
from willis.models.decision import logit, sigmoid

NUM_BINS = 10
MIN_TO_FIT = 20
_BETAS = (0.1, 10.0)


def fit_temperature(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Find the temperature with the smallest log loss, between .1 and 10 (calibration patients only).

    The loss is convex in 1/temperature, so a bisection on its slope finds the minimum.
    """
    y, p = checked(outcome, probability, "temperature")
    logits = logit(p)
    low, high = _BETAS
    for _ in range(60):
        middle = (low + high) / 2
        slope = float(((sigmoid(middle * logits) - y) * logits).sum())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)


def brier(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Mean squared distance of probability and outcome."""
    return float(np.mean((np.asarray(probability, np.float64) - np.asarray(outcome, np.float64)) ** 2))


def equal_mass_bins(
    outcome: npt.ArrayLike, probability: npt.ArrayLike, num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Sort by probability and cut into bins of equal size (sizes differ by at most one)."""
    y, p = np.asarray(outcome, np.float64), np.asarray(probability, np.float64)
    parts = np.array_split(np.argsort(p, kind="stable"), min(num_bins, p.size))
    return tuple(
        ReliabilityBin(
            num_patients=part.size,
            mean_probability=float(p[part].mean()),
            share_poor=float(y[part].mean()),
        )
        for part in parts
    )


def expected_calibration_error(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Mean gap between probability and share of poor outcomes over equal-mass bins."""
    bins = equal_mass_bins(outcome, probability)
    total = sum(b.num_patients for b in bins)
    return sum(b.num_patients * abs(b.mean_probability - b.share_poor) for b in bins) / total


def ece_of_perfect_model(
    probability: npt.ArrayLike, num_draws: int = 2000, quantile: float = 0.95, seed: int = 0
) -> float:
    """ECE that a perfectly calibrated model with these very probabilities exceeds in 5 % of samples.

    Outcomes are drawn from the probabilities themselves, so whatever error is left is chance.
    """
    p = np.sort(np.asarray(probability, np.float64))
    outcomes = np.random.default_rng(seed).random((num_draws, p.size)) < p
    gaps = np.zeros(num_draws)
    for part in np.array_split(np.arange(p.size), min(NUM_BINS, p.size)):
        gaps += part.size * np.abs(outcomes[:, part].mean(axis=1) - p[part].mean())
    return float(np.quantile(gaps / p.size, quantile))


def slope_and_intercept(
    outcome: npt.ArrayLike, probability: npt.ArrayLike
) -> tuple[float | None, float | None]:
    """Calibration slope, and intercept at slope 1 (calibration in the large); perfect is 1 and 0.

    Returns:
        None in place of a number that does not exist: the outcome separates, or all probabilities are equal.
    """
    y, p = checked(outcome, probability, "calibration slope")
    x = logit(p)
    large = _newton(np.ones((y.size, 1)), y, offset=x)
    both = _newton(np.stack([np.ones(y.size), x], axis=1), y, offset=np.zeros(y.size))
    return (None if both is None else float(both[1])), (None if large is None else float(large[0]))


def calibration_result(
    outcome: Numbers,
    probability: Numbers,
    *,
    prevalence: float,
    temperature: float,
    counts: Numbers,
    confidence: float,
    seed: int,
) -> CalibrationResult:
    """Everything about calibration on the test patients.

    Args:
        outcome: (n,) zeros and ones.
        probability: (n,) calibrated.
        prevalence: of the training split; the skill is measured against always saying this.
        temperature: fitted on calibration; reported only.
        counts: (b, n) bootstrap.
        confidence: of the intervals.
        seed: of the simulated perfect model.
    """
    squared = (probability - outcome) ** 2
    of_prevalence = (prevalence - outcome) ** 2
    total = counts.sum(axis=1)
    draws = counts @ squared / total
    skill = 1 - squared.mean() / of_prevalence.mean()
    slope, intercept = slope_and_intercept(outcome, probability)
    return CalibrationResult(
        brier=percentile_interval(float(squared.mean()), draws, confidence),
        brier_skill=percentile_interval(
            float(skill), 1 - draws / (counts @ of_prevalence / total), confidence
        ),
        ece=expected_calibration_error(outcome, probability),
        ece_perfect_95=ece_of_perfect_model(probability, seed=seed),
        slope=slope,
        intercept=intercept,
        temperature=temperature,
        bins=equal_mass_bins(outcome, probability),
    )


def too_few(split: str, outcome: Numbers) -> str:
    """Why nothing can be fitted on a split; empty where it can."""
    num_poor = int(outcome.sum())
    if outcome.size >= MIN_TO_FIT and num_poor not in (0, outcome.size):
        return ""
    return (
        f"{split} holds {outcome.size} patients, {num_poor} of them poor; fitting takes {MIN_TO_FIT} and "
        "both classes"
    )


def _newton(design: Numbers, outcome: Numbers, offset: Numbers) -> Numbers | None:
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        p = sigmoid(design @ weights + offset)
        curvature = design.T @ (design * (p * (1 - p))[:, None])
        if not np.isfinite(curvature).all() or np.linalg.cond(curvature) > 1e10:
            return None
        step = np.linalg.solve(curvature, design.T @ (outcome - p))
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            return np.asarray(weights)
    return None
