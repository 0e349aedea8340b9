"""Cross-validation on given folds: our network beside classical rivals, on the same patients.

Outside the pipeline's graph. Each (model, repeat, fold) leaves one file of predictions, written whole; a run
that was killed goes on with the first one that is missing, and inside it from its newest checkpoint.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from willis.errors import CohortError, ParamsError
from willis.evaluation.baselines import KINDS, Kind, fact_columns, fit_baseline, table_columns
from willis.evaluation.metrics import (
    Numbers,
    auc,
    auc_of_resamples,
    bootstrap_counts,
    percentile_interval,
)
from willis.evaluation.patients import Cohort
from willis.evaluation.results import FoldsResult, Lead, ModelOnFolds
from willis.params import PretrainParams, TrainParams

if TYPE_CHECKING:
    import pandas as pd

TASK = "poor_outcome"
OURS: Literal["willis"] = "willis"
Model: TypeAlias = Kind | Literal["willis"]
MODELS: tuple[Model, ...] = (*KINDS, OURS)
VALIDATION_SHARE = 0.15
NUM_BOOTSTRAP = 2000
CONFIDENCE = 0.95
NO_PRETRAINING = PretrainParams(method="none")


@dataclass(frozen=True)
class Fold:
    """One fold of one repeat: who is tested; everybody else of the repeat is trained on."""

    repeat: int
    number: int
    test: tuple[str, ...]
    train: tuple[str, ...]

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"r{self.repeat}-f{self.number}"


def evaluate_folds(
    ingest: Path,
    features: Path,
    folds: Path,
    task: str,
    out: Path,
    params: TrainParams,
    *,
    repeats: int | None = None,
    pretrain: PretrainParams = NO_PRETRAINING,
) -> FoldsResult:
    """Train and test on given folds.

    Args:
        ingest: output of `ingest`.
        features: output of `featurize`.
        folds: TSV with columns task, repeat, fold, participant_id.
        task: rows of `folds` to use; only `poor_outcome` is known.
        out: folder for folds.json and predictions per (model, repeat, fold), which a later run goes on from.
        params: section `train` of params.yaml; each fold is trained in this process, not on Ray.
        repeats: use only the first so many repeats.
        pretrain: section `pretrain`; each fold's encoder learns from all patients whom it does not test.

    Returns:
        Mean AUC over folds per model and the network's paired lead over each; also folds.json.

    Raises:
        ParamsError: the file, its columns or the task are not there.
        CohortError: too few of its patients were ingested, or a fold has one class.
    """
    cohort = Cohort.read(ingest, features)
    plan, absent = read_folds(folds, task, cohort.frame, repeats)
    digest = hashlib.sha256(folds.read_bytes() + (ingest / "ingest.json").read_bytes())
    digest.update((features / "training_table.parquet").read_bytes())
    for model, fold in _with_progress([(m, f) for f in plan for m in MODELS]):
        path = _path(out, digest.hexdigest(), model, fold, params, pretrain)
        if not path.exists():
            work = out / "work" / f"{path.parent.name}-{fold.name}"
            rows = (
                _by_network(fold, ingest, features, work, params, pretrain)
                if model == OURS
                else _by_rival(model, fold, cohort, params.seed)
            )
            _write(path, rows)
            shutil.rmtree(work, ignore_errors=True)
    outcome, predictions, member = _collect(plan, cohort, out, digest.hexdigest(), params, pretrain)
    result = summarise(outcome, predictions, member, absent, params.seed)
    partial = out / ".folds.json.partial"
    partial.write_text(result.model_dump_json(indent=2) + "\n")
    partial.replace(out / "folds.json")
    return result


def read_folds(
    path: Path, task: str, frame: "pd.DataFrame", repeats: int | None = None
) -> tuple[list[Fold], tuple[str, ...]]:
    """Read the plan and leave out patients who were not ingested.

    Args:
        path: the TSV.
        task: which rows.
        frame: patients with `patient_id` and `poor_outcome`.
        repeats: use only the first so many.

    Returns:
        Folds in order, and who was left out.

    Raises:
        ParamsError: no such file, column or task.
        CohortError: half or more of the patients are absent, or a fold has one class.
    """
    import pandas as pd

    if not path.is_file():
        raise ParamsError(
            f"{path} does not exist; give a TSV with columns task, repeat, fold, participant_id"
        )
    plan = pd.read_csv(path, sep="\t", dtype=str)
    missing = {"task", "repeat", "fold", "participant_id"} - set(plan.columns)
    if missing:
        raise ParamsError(f"{path} lacks columns {sorted(missing)}; it has {list(plan.columns)}")
    if task != TASK or task not in set(plan["task"]):
        raise ParamsError(
            f"task is {task!r}; {path} has {sorted(set(plan['task']))}, and only {TASK!r} can be evaluated"
        )
    plan = plan[plan["task"] == task]
    twice = plan.duplicated(["repeat", "participant_id"])
    if twice.any():
        first = plan[twice].iloc[0]
        raise ParamsError(
            f"{path}: {first['participant_id']!r} is in two folds of repeat {first['repeat']}; "
            "each patient is tested once per repeat"
        )
    known = frame.loc[frame["poor_outcome"].notna(), ["patient_id", "poor_outcome"]]
    outcome = dict(zip(known["patient_id"].astype(str), known["poor_outcome"].astype(float), strict=True))
    there = plan["participant_id"].isin(list(outcome))
    absent = tuple(sorted(set(plan.loc[~there, "participant_id"])))
    if there.mean() <= 0.5:
        raise CohortError(
            f"{len(absent)} patients of {path} have no outcome among the ingested, first {absent[0]!r}; "
            "these folds are of another cohort"
        )
    found = sorted(_folds(plan[there]), key=lambda fold: (fold.repeat, fold.number))
    kept = [fold for fold in found if repeats is None or fold.repeat < repeats]
    for fold in kept:
        _check(fold, outcome, path)
    return kept, absent


def summarise(
    outcome: Numbers,
    predictions: dict[str, Numbers],
    member: npt.NDArray[np.int64],
    absent: tuple[str, ...],
    seed: int,
) -> FoldsResult:
    """Mean AUC over folds with its interval, and paired leads.

    Args:
        outcome: (n,) zeros and ones.
        predictions: model -> (repeats, n) out-of-fold probabilities.
        member: (repeats, n), the fold in which each patient was tested.
        absent: patients of the plan who could not be used.
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
        absent=absent,
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
    )


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
    """Mean AUC over all folds in every resample of patients, shape (b,)."""
    found = [
        auc_of_resamples(outcome[row == k], p[row == k], counts[:, row == k])
        for p, row in zip(predictions, member, strict=True)
        for k in np.unique(row)
    ]
    return np.asarray(np.nanmean(np.stack(found), axis=0))


def validation_of(train: tuple[str, ...], outcome: dict[str, float], seed: int) -> frozenset[str]:
    """Set aside training patients for early stopping: the same share of each class, by a hash of the id."""

    def place(patient: str) -> str:
        return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()

    chosen: set[str] = set()
    for value in (0.0, 1.0):
        of_class = sorted((p for p in train if outcome[p] == value), key=place)
        chosen.update(of_class[: max(1, round(VALIDATION_SHARE * len(of_class)))])
    return frozenset(chosen)


def _folds(plan: "pd.DataFrame") -> Iterator[Fold]:
    for repeat, number in plan[["repeat", "fold"]].drop_duplicates().itertuples(index=False):
        rows = plan[plan["repeat"] == repeat]
        tested = rows["fold"] == number
        test, train = (tuple(rows.loc[part, "participant_id"]) for part in (tested, ~tested))
        yield Fold(int(repeat), int(number), test, train)


def _check(fold: Fold, outcome: dict[str, float], path: Path) -> None:
    for part, patients in (("test", fold.test), ("training", fold.train)):
        num_poor = sum(outcome[p] for p in patients)
        if num_poor in (0, len(patients)):
            raise CohortError(
                f"{path}: {part} part of fold {fold.name} has {len(patients)} patients, {num_poor:g} of them "
                "poor; both classes must occur (fewer patients than folds?)"
            )


def _path(
    out: Path, data: str, model: str, fold: Fold, params: TrainParams, pretrain: PretrainParams
) -> Path:
    """Where the predictions of one fold lie; other data, folds or parameters are another place."""
    taught = "" if pretrain.method == "none" else pretrain.model_dump_json()
    said = params.model_dump_json() + taught if model == OURS else str(params.seed)
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
    """Train in this process, stop early on patients set aside from the training part, predict the rest."""
    from willis.evaluation.fold_training import pretrain_fold, train_fold

    cohort = Cohort.read(ingest, features)
    known = cohort.frame[cohort.frame["poor_outcome"].notna()]
    outcome = dict(zip(known["patient_id"].astype(str), known["poor_outcome"].astype(float), strict=True))
    validation = validation_of(fold.train, outcome, params.seed)
    split = {patient: "validation" if patient in validation else "train" for patient in fold.train}
    split |= dict.fromkeys(fold.test, "test")
    weights = pretrain_fold(ingest, fold.test, work / "pretrain", pretrain)
    embeddings = work.parents[1] / "embeddings"
    predictor = train_fold(ingest, features, split, work, embeddings, params, weights)
    rows = cohort.frame[cohort.frame["patient_id"].isin(fold.test)].reset_index(drop=True)
    encodings = predictor.encode(cohort.patients(rows).cases)
    return rows[["patient_id"]].assign(p=predictor.probabilities(encodings))


def _collect(
    plan: list[Fold], cohort: Cohort, out: Path, data: str, params: TrainParams, pretrain: PretrainParams
) -> tuple[Numbers, dict[str, Numbers], npt.NDArray[np.int64]]:
    import pandas as pd

    patients = sorted({patient for fold in plan for patient in fold.test})
    place = {patient: k for k, patient in enumerate(patients)}
    repeats = sorted({fold.repeat for fold in plan})
    member = np.full((len(repeats), len(patients)), -1)
    found: dict[str, Numbers] = {model: np.full(member.shape, np.nan) for model in MODELS}
    for fold in plan:
        row = repeats.index(fold.repeat)
        member[row, [place[p] for p in fold.test]] = fold.number
        for model in MODELS:
            rows = pd.read_parquet(_path(out, data, model, fold, params, pretrain))
            found[model][row, [place[p] for p in rows["patient_id"]]] = rows["p"]
    if (member < 0).any():
        raise CohortError(f"{int((member < 0).any(axis=0).sum())} patients are not tested in every repeat")
    outcome = cohort.frame.set_index("patient_id").loc[patients, "poor_outcome"].to_numpy(np.float64)
    return outcome, found, member


def _with_progress(todo: list[tuple[Model, Fold]]) -> Iterator[tuple[Model, Fold]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("folds"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                  TimeRemainingColumn()) as bar:  # fmt: skip
        task = bar.add_task("", total=len(todo))
        for model, fold in todo:
            bar.update(task, description=f"{model} {fold.name}")
            yield model, fold
            bar.advance(task)
