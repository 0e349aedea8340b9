"""What an evaluation says, typed: evaluation.json is one `Evaluation`."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """Frozen, closed, and without NaN: what could not be measured is None with a reason beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Result):
    """A number and the interval around it."""

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """True when `number` lies outside the interval."""
        return not self.low <= number <= self.high


class ThresholdMetrics(Result):
    """Metrics at the threshold chosen on validation."""

    threshold: float
    accuracy: Interval
    f1: Interval
    sensitivity: Interval
    specificity: Interval


class ReliabilityBin(Result):
    """One bin of the reliability plot: equal numbers of patients, sorted by probability."""

    num_patients: int
    mean_probability: float
    share_poor: float


class CalibrationResult(Result):
    """How far probabilities can be taken at their word."""

    brier: Interval
    brier_skill: Interval
    ece: float
    ece_perfect_95: float
    slope: float | None
    intercept: float | None
    temperature: float
    bins: tuple[ReliabilityBin, ...]


class DecisionCurve(Result):
    """Net benefit per patient at each threshold probability; treating nobody is 0 everywhere."""

    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    treat_all: tuple[float, ...]
    astral: tuple[float, ...] | None


class Coverage(Result):
    """How often the prediction set holds the truth in one group of patients."""

    group: str
    level: str
    num_patients: int
    coverage: float
    low: float
    high: float
    verdict: Literal["as promised", "too low", "too high", "too few to tell"]


class ConformalResult(Result):
    """Split-conformal sets: promised and found coverage."""

    target: float
    quantile: float
    num_calibration: int
    overall: Coverage
    share_certain: float
    over_resplits: float | None
    subgroups: tuple[Coverage, ...]


class Subgroup(Result):
    """The headline model in one group of test patients."""

    group: str
    level: str
    num_patients: int
    num_poor: int
    auc: Interval | None
    brier: float
    mean_probability: float


class Rival(Result):
    """Another predictor on the same test patients, and the headline's paired lead over it."""

    name: str
    kind: Literal["control", "baseline", "score", "ceiling"]
    auc: Interval | None
    lead: Interval | None
    brier: float | None = None
    note: str = ""


class Ceiling(Result):
    """The true probability, on the same test patients: what nobody can beat but by luck or a leak."""

    auc: Interval
    image: float | None
    table: float | None
    lead_over_truth: Interval
    expected_full: float | None
    expected_image: float | None
    expected_table: float | None
    preset: str | None


class ModalityShare(Result):
    """Mean and mean absolute Shapley value of one modality over test patients that have it."""

    modality: str
    num_patients: int
    mean: float
    mean_absolute: float


class FeatureShare(Result):
    """How far the probability moves, on average, when one clinical value is hidden."""

    column: str
    num_patients: int
    mean_absolute: float


class SplitCount(Result):
    """Patients with an outcome in one split."""

    split: str
    num_patients: int
    num_with_outcome: int
    num_poor: int


class ModalityCount(Result):
    """Test patients that have one modality."""

    modality: str
    num_patients: int


class NotMeasured(Result):
    """Something the method asks for that this run could not measure, and why."""

    name: str
    reason: str


class Evaluation(Result):
    """Everything that `evaluate` found; intervals are at `confidence` unless they say otherwise."""

    num_patients: int
    num_poor: int
    outcome: str
    source: str
    confidence: float
    splits: tuple[SplitCount, ...]
    modalities: tuple[ModalityCount, ...]
    training_prevalence: float
    auc: float
    auc_low: float
    auc_high: float
    auc_bootstrap: Interval
    auprc: Interval
    at_threshold: ThresholdMetrics
    calibration: CalibrationResult
    decision: DecisionCurve
    conformal: ConformalResult
    subgroups: tuple[Subgroup, ...]
    controls: tuple[Rival, ...]
    baselines: tuple[Rival, ...]
    scores: tuple[Rival, ...]
    ceiling: Ceiling | None
    ceiling_reason: str
    attribution: tuple[ModalityShare, ...]
    table_attribution: tuple[FeatureShare, ...]
    standard_error: float
    patients_to_show_gain_of_01: int
    not_measured: tuple[NotMeasured, ...]
    notes: tuple[str, ...]
    saliency: tuple[str, ...]
    seconds: float

    def rival(self, name: str) -> Rival:
        """Return the control, baseline or score of that name.

        Raises:
            KeyError: there is none.
        """
        for rival in (*self.controls, *self.baselines, *self.scores):
            if rival.name == name:
                return rival
        raise KeyError(name)


def by_falling_auc(rivals: Iterable[Rival]) -> list[Rival]:
    """Return the rivals by falling AUC, those without one last."""
    return sorted(rivals, key=lambda rival: rival.auc.value if rival.auc else -1.0, reverse=True)


def strongest(rivals: Iterable[Rival]) -> Rival | None:
    """Return the rival with the largest AUC; None where none has one."""
    first = next(iter(by_falling_auc(rivals)), None)
    return first if first is not None and first.auc is not None else None


class ModelOnFolds(Result):
    """One model over all folds: mean AUC, its interval over patients, spread between folds."""

    name: str
    auc: Interval
    fold_sd: float
    auc_of_mean_prediction: float


class Lead(Result):
    """The network's paired lead over a rival, mean AUC over folds."""

    over: str
    auc: Interval


class AreaInFold(Result):
    """AUC of one model on the patients of one fold."""

    name: str
    auc: Interval


class FoldAreas(Result):
    """One fold: how many were trained on and tested, and the AUC of each model there.

    Attributes:
        label: what the tested patients share: a fold's number, a site, a period.
    """

    label: str
    num_training: int
    num_tested: int
    num_poor: int
    models: tuple[AreaInFold, ...]


class FoldsResult(Result):
    """Cross-validation on given folds, sites or periods; folds.json.

    Attributes:
        absent: patients of a folds file who could not be used.
        untested: sites that are trained on but have no AUC, with the reason.
    """

    task: str
    num_patients: int
    num_poor: int
    num_repeats: int
    num_folds: int
    absent: tuple[str, ...]
    untested: tuple[str, ...]
    models: tuple[ModelOnFolds, ...]
    leads: tuple[Lead, ...]
    folds: tuple[FoldAreas, ...]


class LearningPoint(Result):
    """What so many patients to learn from give; the folds are draws of them."""

    num_labels: int
    result: FoldsResult


class LearningCurve(Result):
    """AUC against patients; learning_curve.json."""

    points: tuple[LearningPoint, ...]


class SeverityModel(Result):
    """One model's correlation with NIHSS, mean over repeats, with its interval over patients."""

    name: str
    r: Interval


class SeverityLead(Result):
    """The network's paired lead over a rival."""

    over: str
    r: Interval


class SeverityResult(Result):
    """NIHSS from image, report and age on given folds; severity.json."""

    num_patients: int
    num_repeats: int
    models: tuple[SeverityModel, ...]
    leads: tuple[SeverityLead, ...]
