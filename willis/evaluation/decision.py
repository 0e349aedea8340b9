"""Decision curve: is acting on the model better than treating everybody, nobody, or by a score?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from willis.evaluation.results import DecisionCurve

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 17))


def net_benefit(outcome: npt.ArrayLike, probability: npt.ArrayLike, threshold: float) -> float:
    """TP/n - FP/n * t/(1 - t), calling poor from `threshold` upwards.

    Reference:
        Vickers and Elkin, Medical Decision Making 26:565 (2006).
    """
    y = np.asarray(outcome, np.float64)
    called = np.asarray(probability, np.float64) >= threshold
    true_positive, false_positive = y[called].sum(), (1 - y[called]).sum()
    return float((true_positive - false_positive * threshold / (1 - threshold)) / y.size)


def decision_curve(
    outcome: npt.ArrayLike,
    probability: npt.ArrayLike,
    astral: npt.ArrayLike | None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> DecisionCurve:
    """Net benefit of the model, of treating everybody, and of ASTRAL's own probability where it exists."""
    everybody = np.ones(np.asarray(outcome).size)

    def curve(p: npt.ArrayLike) -> tuple[float, ...]:
        return tuple(net_benefit(outcome, p, t) for t in thresholds)

    return DecisionCurve(
        thresholds=tuple(thresholds),
        model=curve(probability),
        treat_all=curve(everybody),
        astral=None if astral is None else curve(astral),
    )
