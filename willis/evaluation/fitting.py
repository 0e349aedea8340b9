"""What is fitted after training: the threshold on validation, temperature and quantile on calibration."""

from dataclasses import dataclass

from willis.evaluation.calibration import fit_temperature, too_few
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

    Training stopped where validation looked best, so a temperature fitted there is too mild; calibration
    patients have chosen nothing. Prediction sets do not feel that both are fitted on them: a temperature
    keeps the order of 1 - P(class) over patients and both classes, so every set stays as it is.

    Args:
        validation: for the threshold.
        calibration: for temperature and conformal quantile.
        coverage: that prediction sets promise.
        prevalence: of the training split: the threshold where validation is too small to choose one.
    """
    notes = []
    temperature, threshold = 1.0, prevalence
    if scarce := too_few("calibration", calibration.outcome):
        notes.append(f"temperature stays 1: {scarce}")
    else:
        temperature = fit_temperature(calibration.outcome, calibration.probability_raw)
    if scarce := too_few("validation", validation.outcome):
        notes.append(f"threshold is the training prevalence, {prevalence:.3f}: {scarce}")
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
