"""What is fitted after training: temperature and threshold on validation, the quantile on calibration."""

from dataclasses import dataclass

from willis.evaluation.calibration import choose_temperature
from willis.evaluation.conformal import fit_quantile
from willis.evaluation.metrics import Numbers, best_threshold
from willis.models.decision import Calibration, tempered


@dataclass(frozen=True)
class Labelled:
    """Patients of one split who have an outcome, and what the network says of them before calibration."""

    outcome: Numbers
    probability_raw: Numbers


def fit_calibration(
    validation: Labelled, calibration: Labelled, coverage: float, prevalence: float
) -> Calibration:
    """Fit everything that turns the network's word into a decision; test patients are not an argument.

    Args:
        validation: for temperature and threshold.
        calibration: for the conformal quantile alone.
        coverage: that prediction sets promise.
        prevalence: of the training split: the threshold where validation is too small to choose one.
    """
    temperature, note = choose_temperature(validation.outcome, validation.probability_raw)
    notes = [note] if note else []
    if note:
        threshold = prevalence
        notes.append(f"threshold is the training prevalence, {prevalence:.3f}, for the same reason")
    else:
        threshold = best_threshold(validation.outcome, tempered(validation.probability_raw, temperature))
    calibrated = tempered(calibration.probability_raw, temperature)
    quantile = fit_quantile(calibration.outcome, calibrated, coverage)
    if quantile == 1.0:
        notes.append(
            f"prediction sets hold both classes: {calibration.outcome.size} calibration patients cannot "
            f"promise {coverage:.0%}"
        )
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        conformal_quantile=quantile,
        conformal_coverage=coverage,
        num_validation=validation.outcome.size,
        num_calibration=calibration.outcome.size,
        notes=tuple(notes),
    )
