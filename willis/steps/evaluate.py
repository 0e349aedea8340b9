"""Step `evaluate`: what the model is worth on the test split, beside its controls, rivals and ceiling.

The only step that reads the test split's outcomes, and the only one that reads `derivatives/truth/`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from willis.cohort.schema import MODALITIES
from willis.evaluation import plots
from willis.evaluation.calibration import calibration_result
from willis.evaluation.card import model_card
from willis.evaluation.ceiling import Truth, ceiling_result, read_truth, refuse_leaks, source_of
from willis.evaluation.comparison import Comparison, patients_to_show
from willis.evaluation.conformal import conformal_result, coverage_over_resplits
from willis.evaluation.controls import column_shares, modality_shares
from willis.evaluation.decision import decision_curve
from willis.evaluation.examples import choose_examples, saliency_view
from willis.evaluation.fitting import Labelled, fit_calibration
from willis.evaluation.metrics import (
    Numbers,
    average_precision,
    average_precision_of_resamples,
    bootstrap_counts,
    checked,
    delong_components,
    delong_interval,
    percentile_interval,
    threshold_metrics,
)
from willis.evaluation.patients import Cohort, Ingested, Patients
from willis.evaluation.results import (
    Ceiling,
    ConformalResult,
    Evaluation,
    Interval,
    by_falling_auc,
    strongest,
)
from willis.evaluation.rivals import Rivals, compare_with_rivals
from willis.evaluation.subgroups import groups_of, subgroup_results
from willis.inference import Encodings, Prediction, Predictor
from willis.models.decision import Calibration, tempered
from willis.outputs import whole_folder
from willis.params import EvaluateParams

if TYPE_CHECKING:
    import pandas as pd

RECORD = "evaluation.json"
NUM_RESPLITS = 200
ROC_BASELINES = 3
"""More curves than the strongest few hide each other; all are in the table."""


@dataclass(frozen=True)
class _Asked:
    """Patients of one split, encoded once."""

    patients: Patients
    encodings: Encodings

    def labelled(self) -> "_Asked":
        rows = self.patients.with_outcome()
        return _Asked(self.patients.take(rows), self.encodings.take(rows))


@dataclass(frozen=True)
class _Judged:
    """The test patients and everything that was asked about them."""

    cohort: Cohort
    predictor: Predictor
    asked: tuple[_Asked, ...]
    """Validation, calibration and test patients, with and without an outcome."""
    test: Patients
    """Test patients with an outcome; `encodings` and `predictions` are theirs."""
    encodings: Encodings
    predictions: list[Prediction]
    comparison: Comparison
    pooled: Labelled
    """Calibration and test patients, calibrated: dealt anew to see the promise of coverage on average."""


def evaluate(
    cohort: Path, ingest: Path, features: Path, model: Path, out: Path, params: EvaluateParams
) -> Evaluation:
    """Evaluate a trained model.

    Args:
        cohort: BIDS cohort; of it, only dataset_description.json and derivatives/truth/ are read.
        ingest: output of `ingest`.
        features: output of `featurize`.
        model: output of `train`.
        out: folder to write: evaluation.json, calibration.json, predictions.parquet, pictures and the model
            card; appears whole or not at all.
        params: section `evaluate` of params.yaml.

    Raises:
        CohortError: nobody, or one class only, has an outcome in the test split.
        LeakError: a result exceeds what the true probability allows; nothing is written.
        StepError: the folders were not made from each other.
        BundleError: the model is damaged.
    """
    started = time.perf_counter()
    with whole_folder(out, RECORD) as staged:
        with _Progress() as progress:
            evaluation = _evaluate(cohort, ingest, features, model, staged, params, progress)
        evaluation = evaluation.model_copy(update={"seconds": round(time.perf_counter() - started, 1)})
        (staged / "model_card.md").write_text(model_card(evaluation))
        (staged / RECORD).write_text(evaluation.model_dump_json(indent=2) + "\n")
    return evaluation


def _evaluate(
    cohort: Path, ingest: Path, features: Path, model: Path, out: Path, params: EvaluateParams,
    progress: "_Progress",
) -> Evaluation:  # fmt: skip
    progress.say("asking the network about validation, calibration and test")
    judged = _judge(Cohort.read(ingest, features), model, params)
    test, comparison = judged.test, judged.comparison
    progress.say("controls, baselines and scores")
    rivals = compare_with_rivals(
        comparison, judged.predictor, judged.encodings, test, judged.cohort.rows("train"), params
    )
    progress.say("ceiling")
    truth, reason = read_truth(cohort, test.patient_ids)
    ceiling = None
    if truth is not None:
        results = {"Willis, all modalities": comparison.headline, **rivals.raw}
        refuse_leaks(truth, comparison.outcome, results, comparison.counts)
        ceiling = ceiling_result(truth, comparison.outcome, comparison.headline, comparison.counts)
    progress.say("saliency of three patients")
    ingested = Ingested.read(ingest)
    pictures = _draw_saliency(judged, ingested.spacing_mm, out)
    evaluation = _result(
        judged, rivals, ceiling, reason, tuple(pictures), source_of(cohort), ingested.outcome, params
    )
    progress.say("pictures")
    _draw(judged, rivals, truth, evaluation, out)
    _write_predictions(judged, pictures, out / "predictions.parquet")
    (out / "calibration.json").write_text(judged.predictor.calibration.model_dump_json(indent=2) + "\n")
    return evaluation


def _judge(cohort: Cohort, model: Path, params: EvaluateParams) -> _Judged:
    """Fit the calibration on its own splits, then ask the calibrated model about the test patients."""
    cache = model / "embeddings"
    predictor = Predictor.from_model_dir(model, None, text_cache=cache if cache.is_dir() else None)
    asked = tuple(_ask(predictor, cohort.split(split)) for split in ("validation", "calibration", "test"))
    validation, held_out, _ = (_labelled(predictor, part) for part in asked)
    calibration = fit_calibration(
        validation, held_out, params.conformal_coverage, predictor.config.prevalence
    )
    predictor = predictor.recalibrated(calibration)
    judged = asked[-1].labelled()
    test, encodings = judged.patients, judged.encodings
    checked(test.outcome, np.zeros(len(test.cases)), "test split")
    headline = predictor.probabilities(encodings)
    counts = bootstrap_counts(headline.size, params.num_bootstrap, params.seed)
    return _Judged(
        cohort=cohort,
        predictor=predictor,
        asked=asked,
        test=test,
        encodings=encodings,
        predictions=predictor.explain(encodings),
        comparison=Comparison(test.outcome, headline, counts, params.confidence),
        pooled=_pooled(held_out, calibration, test.outcome, headline),
    )


def _ask(predictor: Predictor, patients: Patients) -> _Asked:
    return _Asked(patients, predictor.encode(patients.cases))


def _labelled(predictor: Predictor, asked: _Asked) -> Labelled:
    part = asked.labelled()
    return Labelled(part.patients.outcome, predictor.probabilities(part.encodings))


def _pooled(held_out: Labelled, calibration: Calibration, outcome: Numbers, headline: Numbers) -> Labelled:
    calibrated = tempered(held_out.probability_raw, calibration.temperature)
    return Labelled(np.append(held_out.outcome, outcome), np.append(calibrated, headline))


def _result(
    judged: _Judged, rivals: Rivals, ceiling: Ceiling | None, ceiling_reason: str, pictures: tuple[str, ...],
    source: str, outcome_name: str, params: EvaluateParams,
) -> Evaluation:  # fmt: skip
    comparison, calibration = judged.comparison, judged.predictor.calibration
    outcome, headline, counts = comparison.outcome, comparison.headline, comparison.counts
    area = delong_interval(outcome, headline, params.confidence)
    prevalence = judged.predictor.config.prevalence
    precision = average_precision_of_resamples(outcome, headline, counts)
    return Evaluation(
        num_patients=outcome.size,
        num_poor=int(outcome.sum()),
        outcome=outcome_name,
        source=source,
        confidence=params.confidence,
        splits=judged.cohort.counts(),
        modalities=judged.test.modality_counts(),
        training_prevalence=prevalence,
        auc=area.value,
        auc_low=area.low,
        auc_high=area.high,
        auc_bootstrap=comparison.interval(),
        auprc=percentile_interval(average_precision(outcome, headline), precision, params.confidence),
        at_threshold=threshold_metrics(outcome, headline, calibration.threshold, counts, params.confidence),
        calibration=calibration_result(
            outcome, headline, prevalence=prevalence, temperature=calibration.temperature, counts=counts,
            confidence=params.confidence, seed=params.seed,
        ),
        decision=decision_curve(outcome, headline, rivals.astral),
        conformal=_coverage(judged, params),
        subgroups=subgroup_results(groups_of(judged.test.frame), outcome, headline, params.confidence),
        controls=rivals.controls,
        baselines=rivals.baselines,
        scores=rivals.scores,
        ceiling=ceiling,
        ceiling_reason=ceiling_reason,
        attribution=modality_shares(judged.predictions)[0],
        table_attribution=column_shares(judged.predictor, judged.encodings),
        standard_error=float(np.sqrt(delong_components(outcome, headline)[1][0, 0])),
        patients_to_show_gain_of_01=patients_to_show(0.01, outcome.size, _hardest_lead(rivals, area)),
        not_measured=rivals.not_measured,
        notes=calibration.notes,
        saliency=pictures,
        seconds=0.0,
    )  # fmt: skip


def _coverage(judged: _Judged, params: EvaluateParams) -> ConformalResult:
    calibration, comparison = judged.predictor.calibration, judged.comparison
    return conformal_result(
        comparison.outcome,
        comparison.headline,
        quantile=calibration.conformal_quantile,
        target=calibration.conformal_coverage,
        num_calibration=calibration.num_calibration,
        groups=groups_of(judged.test.frame),
        over_resplits=coverage_over_resplits(
            judged.pooled.outcome,
            judged.pooled.probability_raw,
            calibration.num_calibration,
            calibration.conformal_coverage,
            NUM_RESPLITS,
            params.seed,
        ),
        confidence=params.confidence,
    )


def _hardest_lead(rivals: Rivals, alone: Interval) -> Interval:
    """The lead over the strongest rival: what a claim of a gain would be about."""
    hardest = strongest((*rivals.baselines, *rivals.scores))
    return alone if hardest is None else hardest.lead or alone


def _draw(judged: _Judged, rivals: Rivals, truth: Truth | None, evaluation: Evaluation, out: Path) -> None:
    outcome, headline = judged.comparison.outcome, judged.comparison.headline
    baselines = [rival.name for rival in by_falling_auc(rivals.baselines) if rival.name in rivals.raw]
    names = [*baselines[:ROC_BASELINES], *(name for name in ("ASTRAL",) if name in rivals.raw)]
    shown = {name: rivals.raw[name] for name in names}
    plots.draw_roc(out / "roc.png", outcome, headline, shown, None if truth is None else truth.full)
    plots.draw_reliability(out / "reliability.png", evaluation.calibration, headline)
    plots.draw_decision(out / "decision.png", evaluation.decision)
    shares, values = modality_shares(judged.predictions)
    plots.draw_attribution(out / "attribution.png", values, shares)


def _draw_saliency(judged: _Judged, spacing_mm: tuple[float, float, float], out: Path) -> dict[str, str]:
    """Draw the examples; return picture -> patient. Names of pictures are published, so they name nobody."""
    drawn: dict[str, str] = {}
    cases, comparison = judged.test.cases, judged.comparison
    for index, reason in choose_examples(cases, comparison.outcome, comparison.headline):
        case = cases[index]
        found = "poor" if comparison.outcome[index] == 1 else "good"
        title = f"{case.case_id}: {reason}; predicted {comparison.headline[index]:.2f}, outcome {found}"
        name = f"saliency-{len(drawn) + 1}.png"
        plots.draw_saliency(out / name, saliency_view(judged.predictor, case, spacing_mm, title))
        drawn[name] = case.case_id
    return drawn


def _write_predictions(judged: _Judged, pictures: Mapping[str, str], path: Path) -> None:
    """One row per patient of the three splits that were asked about, outcome known or not."""
    import pandas as pd

    parts = [
        _prediction_rows(part.patients, judged.predictor.explain(part.encodings))
        for part in judged.asked
        if part.patients.cases
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["picture"] = rows["patient_id"].map({patient: name for name, patient in pictures.items()})
    rows.to_parquet(path, index=False)


def _prediction_rows(patients: Patients, predictions: Sequence[Prediction]) -> "pd.DataFrame":
    rows = patients.frame[["patient_id", "split", "mrs", "poor_outcome"]].copy()
    rows["p"] = [p.probability for p in predictions]
    rows["p_raw"] = [p.probability_raw for p in predictions]
    rows["prediction_set"] = ["/".join(p.prediction_set) for p in predictions]
    rows["modalities_used"] = [",".join(p.modalities_used) for p in predictions]
    for name in MODALITIES:
        rows[f"attribution_{name}"] = [p.attribution.get(name, np.nan) for p in predictions]
    return rows


class _Progress:
    """A line and a bar that say what is being done; silent where nobody is watching."""

    STAGES = 5

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(TextColumn("evaluate"), BarColumn(), TextColumn("{task.description}"),
                             TimeElapsedColumn(), transient=True)  # fmt: skip
        self._task = self._bar.add_task("", total=self.STAGES)
        self._begun = False

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """Finish the stage before and name the next one."""
        self._bar.update(self._task, description=what, advance=1 if self._begun else 0)
        self._begun = True
