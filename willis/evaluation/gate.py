"""The promotion gate: a candidate against fixed limits, and against the champion on the same patients."""

import numpy as np
import numpy.typing as npt

from willis.errors import InputError
from willis.evaluation.calibration import expected_calibration_error
from willis.evaluation.metrics import auc
from willis.evaluation.results import Result


class GateLimits(Result):
    """What a candidate must reach."""

    min_auc: float
    max_ece: float
    max_auc_loss: float
    min_compared: int


class GateCheck(Result):
    """One rule of the gate: the value found, the limit, and whether it holds."""

    rule: str
    value: float
    limit: float
    holds: bool

    def sentence(self) -> str:
        """Say it for people."""
        return f"{self.rule}: {self.value:.3f} against {self.limit:.3f}, {'holds' if self.holds else 'fails'}"


def check_alone(
    outcome: npt.ArrayLike, probability: npt.ArrayLike, limits: GateLimits
) -> tuple[GateCheck, ...]:
    """Hold a candidate against the fixed limits on its test patients.

    Args:
        outcome: 1 poor, 0 good, shape (n,).
        probability: calibrated, shape (n,).
        limits: the section `promote` of params.yaml.

    Raises:
        InputError: no patient, one class only, or a probability that is none.
    """
    area = auc(outcome, probability)
    ece = expected_calibration_error(outcome, probability)
    return (
        GateCheck(rule="min_auc", value=area, limit=limits.min_auc, holds=area >= limits.min_auc),
        GateCheck(rule="max_ece", value=ece, limit=limits.max_ece, holds=ece <= limits.max_ece),
    )


def check_against_champion(
    outcome: npt.ArrayLike, candidate: npt.ArrayLike, champion: npt.ArrayLike, limits: GateLimits
) -> tuple[GateCheck, ...]:
    """Hold a candidate against the champion on the same patients, none of whom either has learned from.

    Args:
        outcome: 1 poor, 0 good, shape (n,).
        candidate: its calibrated probabilities, shape (n,).
        champion: the champion's, for the same patients in the same order.
        limits: `min_compared` patients are needed; the candidate's AUC may be lower by `max_auc_loss`.
    """
    known = np.asarray(outcome, dtype=np.float64)
    enough = GateCheck(
        rule="min_compared",
        value=len(known),
        limit=limits.min_compared,
        holds=len(known) >= limits.min_compared,
    )
    if not enough.holds:
        return (enough,)
    try:
        floor = auc(known, champion) - limits.max_auc_loss
        area = auc(known, candidate)
    except InputError:
        one_class = GateCheck(rule="both_outcomes", value=float(known.mean()), limit=0.5, holds=False)
        return (enough, one_class)
    return (enough, GateCheck(rule="max_auc_loss", value=area, limit=floor, holds=area >= floor))
