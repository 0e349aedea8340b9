"""A small complete evaluation, made up, for tests of what shows it."""

from typing import Any

from willis.evaluation.results import (
    CalibrationResult,
    ConformalResult,
    Coverage,
    DecisionCurve,
    Evaluation,
    Interval,
    ModalityShare,
    Rival,
    ThresholdMetrics,
)


def interval(value: float, half: float = 0.1) -> Interval:
    """An interval of this width around a number."""
    return Interval(value=value, low=value - half, high=value + half)


def rival(name: str, kind: Any, value: float | None, lead: float = 0.0, half: float = 0.1) -> Rival:
    """A predictor with this AUC; without one it says why."""
    if value is None:
        return Rival(name=name, kind=kind, auc=None, lead=None, note="fewer than half have: delay")
    return Rival(name=name, kind=kind, auc=interval(value), lead=interval(lead, half))


def an_evaluation(**changes: Any) -> Evaluation:
    """Ten patients, three baselines, one score that could not be measured, one control."""
    half = interval(0.5)
    group = Coverage(
        group="all", level="all", num_patients=10, coverage=0.9, low=0.8, high=1.0, verdict="as promised"
    )
    fields: dict[str, Any] = {
        "num_patients": 10, "num_poor": 5, "outcome": "mrs", "source": "soop", "confidence": 0.95,
        "splits": (), "modalities": (), "training_prevalence": 0.5, "auc": 0.7, "auc_low": 0.6,
        "auc_high": 0.8, "auc_bootstrap": interval(0.7), "auprc": half,
        "at_threshold": ThresholdMetrics(
            threshold=0.5, accuracy=half, f1=half, sensitivity=half, specificity=half
        ),
        "calibration": CalibrationResult(
            brier=half, brier_skill=half, ece=0.1, ece_perfect_95=0.2, slope=None, intercept=None,
            temperature=1.0, bins=(),
        ),
        "decision": DecisionCurve(thresholds=(0.5,), model=(0.1,), treat_all=(0.0,), astral=None),
        "conformal": ConformalResult(
            target=0.9, quantile=0.9, num_calibration=10, overall=group, share_certain=0.5,
            over_resplits=None, subgroups=(),
        ),
        "subgroups": (),
        "controls": (rival("image only", "control", 0.95),),
        "baselines": (
            rival("logistic on table", "baseline", 0.65, 0.05),
            rival("boosting on facts", "baseline", 0.8, -0.1, half=0.15),
            rival("logistic on facts", "baseline", 0.78, -0.08, half=0.05),
        ),
        "scores": (rival("ASTRAL", "score", None),),
        "ceiling": None, "ceiling_reason": "nobody knows",
        "attribution": (ModalityShare(modality="image", num_patients=10, mean=0.0, mean_absolute=0.1),),
        "table_attribution": (), "standard_error": 0.05, "patients_to_show_gain_of_01": 14482,
        "not_measured": (), "notes": (), "saliency": ("saliency-1.png", "saliency-2.png"),
        "seconds": 1.0,
    }  # fmt: skip
    return Evaluation(**{**fields, **changes})
