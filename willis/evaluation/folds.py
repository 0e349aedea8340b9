"""Cross-validation on a plan: our network beside classical rivals, on the same patients.

Outside the pipeline's graph. Each (model, repeat, fold) leaves one file of predictions, written whole; a run
that was killed goes on with the first one that is missing, and inside it from its newest checkpoint.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from willis.evaluation.baselines import KINDS, Kind, fact_columns, fit_baseline, table_columns
from willis.evaluation.metrics import (
    Numbers,
    auc,
    auc_of_resamples,
    bootstrap_counts,
    percentile_interval,
)
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import TASK, Fold, Plan, known_values
from willis.evaluation.results import AreaInFold, FoldAreas, FoldsResult, Interval, Lead, ModelOnFolds
from willis.models.decision import proper_subsets, subset_name
from willis.params import PretrainParams, TrainParams

if TYPE_CHECKING:
    import pandas as pd

OURS: Literal["willis"] = "willis"
Model: TypeAlias = Kind | Literal["willis"]
MODELS: tuple[Model, ...] = (*KINDS, OURS)
M = TypeVar("M", bound=str)
VALIDATION_SHARE = 0.15
NUM_BOOTSTRAP = 2000
CONFIDENCE = 0.95
NO_PRETRAINING = PretrainParams(method="none")


@dataclass(frozen=True)
class OutOfFold:
    """The tested patients in order, their outcomes, and the fold that tests each in each repeat."""

    patients: tuple[str, ...]
    outcome: Numbers
    member: npt.NDArray[np.int64]
    repeats: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan, outcome: Mapping[str, float]) -> "OutOfFold":
        """Read a plan; every patient is tested in every repeat."""
        patients = tuple(sorted({patient for fold in plan.folds for patient in fold.test}))
        repeats = tuple(sorted({fold.repeat for fold in plan.folds}))
        member = np.full((len(repeats), len(patients)), -1)
        for fold in plan.folds:
            member[repeats.index(fold.repeat), np.isin(patients, fold.test)] = fold.number
        return cls(patients, np.array([outcome[patient] for patient in patients]), member, repeats)

    def gathered(self, predicted: Mapping[Fold, "pd.DataFrame"], column: str = "p") -> Numbers:
        """Lay out one column of the predictions of all folds, by `patient_id`, as (repeats, n)."""
        found = np.full(self.member.shape, np.nan)
        place = {patient: k for k, patient in enumerate(self.patients)}
        for fold, rows in predicted.items():
            found[self.repeats.index(fold.repeat), [place[p] for p in rows["patient_id"]]] = rows[column]
        return found


def evaluate_folds(
    ingest: Path,
    features: Path,
    plan: Plan,
    out: Path,
    params: TrainParams,
    *,
    pretrain: PretrainParams = NO_PRETRAINING,
) -> FoldsResult:
    """Train and test fold by fold.

    Args:
        ingest: output of `ingest`.
        features: output of `featurize`.
        plan: who is tested by whom (`willis.evaluation.plans`).
        out: folder for folds.json and predictions per (model, repeat, fold), which a later run goes on from.
        params: section `train` of params.yaml; each fold is trained in this process, not on Ray.
        pretrain: section `pretrain`; each fold's encoder learns from all patients whom it does not test.

    Returns:
        Mean AUC over folds per model, the network's paired lead over each, and the same for the network given
        fewer modalities; also folds.json.
    """
    tested, predictions = predict_folds(ingest, features, plan, out, params, pretrain)
    result = summarise(tested.outcome, predictions, tested.member, plan, params.seed)
    partial = out / ".folds.json.partial"
    partial.write_text(result.model_dump_json(indent=2) + "\n")
    partial.replace(out / "folds.json")
    return result


def predict_folds(
    ingest: Path,
    features: Path,
    plan: Plan,
    out: Path,
    params: TrainParams,
    pretrain: PretrainParams,
    models: Sequence[Model] = MODELS,
) -> tuple[OutOfFold, dict[str, Numbers]]:
    """Train what is missing, and read what each of some models says of the patients whom its fold tests.

    Args:
        ingest: as in `evaluate_folds`, like all others.
        features: output of `featurize`.
        plan: who is tested by whom.
        out: folder for the predictions.
        params: section `train`.
        pretrain: section `pretrain`.
        models: whom to ask.

    Returns:
        The tested patients, and model -> (repeats, n) probabilities; the network given fewer modalities, by
        presence masks, stands beside it: `willis: image only`, ...
    """
    import pandas as pd

    cohort = Cohort.read(ingest, features)
    summed = hashlib.sha256(plan.digest().encode() + (ingest / "ingest.json").read_bytes())
    summed.update((features / "training_table.parquet").read_bytes())
    digest = summed.hexdigest()
    for model, fold in with_progress([(m, f) for f in plan.folds for m in models]):
        path = _path(out, digest, model, fold, params, pretrain)
        if not path.exists():
            work = out / "work" / f"{path.parent.name}-{fold.name}"
            rows = (
                _by_network(fold, ingest, features, work, params, pretrain)
                if model == OURS
                else _by_rival(model, fold, cohort, params.seed)
            )
            _write(path, rows)
            shutil.rmtree(work, ignore_errors=True)
    tested, found = OutOfFold.of(plan, known_values(cohort.frame, TASK)), dict[str, Numbers]()
    for model in models:
        kept = {f: pd.read_parquet(_path(out, digest, model, f, params, pretrain)) for f in plan.folds}
        found[model] = tested.gathered(kept)
        if model == OURS:
            subsets = [subset_name(subset) for subset in proper_subsets(params.use_modalities)]
            found |= {f"{OURS}: {subset}": tested.gathered(kept, subset) for subset in subsets}
    return tested, found


def summarise(
    outcome: Numbers,
    predictions: dict[str, Numbers],
    member: npt.NDArray[np.int64],
    plan: Plan,
    seed: int,
) -> FoldsResult:
    """Mean AUC over folds with its interval, and paired leads.

    Args:
        outcome: (n,) zeros and ones.
        predictions: model -> (repeats, n) out-of-fold probabilities.
        member: (repeats, n), the fold in which each patient was tested.
        plan: the folds, in order.
        seed: of the bootstrap, which draws patients and keeps them across folds, repeats and models.
    """
    counts = bootstrap_counts(outcome.size, NUM_BOOTSTRAP, seed)
    areas = {name: fold_areas(outcome, p, member) for name, p in predictions.items()}
    draws = {name: mean_area_draws(outcome, p, member, counts) for name, p in predictions.items()}
    mean = {name: float(found.mean()) for name, found in areas.items()}
    return FoldsResult(
        task=TASK,
        num_patients=outcome.size,
        num_poor=int(outcome.sum()),
        num_repeats=len(member),
        num_folds=int(member.max()) + 1,
        absent=plan.absent,
        untested=plan.untested,
        models=tuple(
            ModelOnFolds(
                name=name,
                auc=percentile_interval(mean[name], draws[name], CONFIDENCE),
                fold_sd=float(areas[name].std()),
                auc_of_mean_prediction=auc(outcome, p.mean(axis=0)),
            )
            for name, p in predictions.items()
        ),
        leads=tuple(
            Lead(
                over=name,
                auc=percentile_interval(mean[OURS] - mean[name], draws[OURS] - draws[name], CONFIDENCE),
            )
            for name in predictions
            if name != OURS and OURS in predictions
        ),
        folds=tuple(_by_fold(outcome, predictions, member, counts, plan)),
    )


def _by_fold(
    outcome: Numbers,
    predictions: dict[str, Numbers],
    member: npt.NDArray[np.int64],
    counts: Numbers,
    plan: Plan,
) -> Iterator[FoldAreas]:
    """AUC of every model in every fold of its own."""
    repeats = sorted({fold.repeat for fold in plan.folds})
    for fold in plan.folds:
        row = repeats.index(fold.repeat)
        here = member[row] == fold.number
        yield FoldAreas(
            label=fold.label,
            num_training=len(fold.train),
            num_tested=int(here.sum()),
            num_poor=int(outcome[here].sum()),
            models=tuple(
                AreaInFold(name=name, auc=_area(outcome[here], p[row, here], counts[:, here]))
                for name, p in predictions.items()
            ),
        )


def _area(outcome: Numbers, p: Numbers, counts: Numbers) -> Interval:
    return percentile_interval(auc(outcome, p), auc_of_resamples(outcome, p, counts), CONFIDENCE)


def fold_areas(outcome: Numbers, predictions: Numbers, member: npt.NDArray[np.int64]) -> Numbers:
    """AUC in every fold of every repeat, shape (repeats * folds,)."""
    return np.array(
        [
            auc(outcome[row == k], p[row == k])
            for p, row in zip(predictions, member, strict=True)
            for k in np.unique(row)
        ]
    )


def mean_area_draws(
    outcome: Numbers, predictions: Numbers, member: npt.NDArray[np.int64], counts: Numbers
) -> Numbers:
    """Mean AUC over all folds in every resample of patients, shape (b,).

    A fold that a resample leaves with one class is left out of its mean; NaN where that is every fold.
    """
    found = [
        auc_of_resamples(outcome[row == k], p[row == k], counts[:, row == k])
        for p, row in zip(predictions, member, strict=True)
        for k in np.unique(row)
    ]
    areas = np.stack(found)
    known = ~np.isnan(areas)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, areas, 0).sum(axis=0) / known.sum(axis=0))


def validation_of(train: tuple[str, ...], outcome: dict[str, float], seed: int) -> frozenset[str]:
    """Set aside training patients for early stopping: the same share of each class, by a hash of the id."""

    def place(patient: str) -> str:
        return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()

    chosen: set[str] = set()
    for value in (0.0, 1.0):
        of_class = sorted((p for p in train if outcome[p] == value), key=place)
        chosen.update(of_class[: max(1, round(VALIDATION_SHARE * len(of_class)))])
    return frozenset(chosen)


def _path(
    out: Path, data: str, model: str, fold: Fold, params: TrainParams, pretrain: PretrainParams
) -> Path:
    """Where the predictions of one fold lie; other data, folds or parameters are another place."""
    taught = "" if pretrain.method == "none" else pretrain.model_dump_json()
    # `by subset`: files of earlier releases lack the columns of subsets, and must not be taken for these.
    said = f"by subset {params.model_dump_json()}{taught}" if model == OURS else str(params.seed)
    digest = hashlib.sha256(f"{data}\0{said}".encode()).hexdigest()[:12]
    return out / "predictions" / f"{model}-{digest}" / f"{fold.name}.parquet"


def _write(path: Path, rows: "pd.DataFrame") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    rows.to_parquet(partial, index=False)
    partial.replace(path)


def _by_rival(model: Kind, fold: Fold, cohort: Cohort, seed: int) -> "pd.DataFrame":
    """Fit on all training patients of the fold; early stopping costs a rival nothing."""
    frame = cohort.frame
    train = frame[frame["patient_id"].isin(fold.train)]
    test = frame[frame["patient_id"].isin(fold.test)]
    columns = (*table_columns(frame), *fact_columns(frame))
    fitted = fit_baseline(model, model, train, columns, seed)
    return test[["patient_id"]].assign(p=fitted.predict(test))


def _by_network(
    fold: Fold, ingest: Path, features: Path, work: Path, params: TrainParams, pretrain: PretrainParams
) -> "pd.DataFrame":
    """Train in this process, stop early on patients set aside from the training part, predict the rest.

    Returns:
        `patient_id`, `p` from all modalities, and a column per proper subset of them.
    """
    from willis.evaluation.fold_training import pretrain_fold, train_fold

    cohort = Cohort.read(ingest, features)
    validation = validation_of(fold.train, known_values(cohort.frame, TASK), params.seed)
    split = {patient: "validation" if patient in validation else "train" for patient in fold.train}
    split |= dict.fromkeys(fold.test, "test")
    weights = pretrain_fold(ingest, fold.test, work / "pretrain", pretrain)
    embeddings = work.parents[1] / "embeddings"
    predictor = train_fold(ingest, features, split, work, embeddings, params, weights)
    rows = cohort.frame[cohort.frame["patient_id"].isin(fold.test)].reset_index(drop=True)
    encodings = predictor.encode(cohort.patients(rows).cases)
    by_subset = {
        subset_name(subset): predictor.probabilities(encodings, sorted(subset))
        for subset in proper_subsets(params.use_modalities)
    }
    return rows[["patient_id"]].assign(p=predictor.probabilities(encodings), **by_subset)


def with_progress(todo: list[tuple[M, Fold]]) -> Iterator[tuple[M, Fold]]:
    """Yield what is to be done with a bar that names it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("folds"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                  TimeRemainingColumn()) as bar:  # fmt: skip
        task = bar.add_task("", total=len(todo))
        for model, fold in todo:
            bar.update(task, description=f"{model} {fold.name}")
            yield model, fold
            bar.advance(task)
