"""`tune`: search for better values of `train`, judged on validation alone; the test split is never read.

A command for researchers, not a stage of the pipeline: what it finds is pasted into params.yaml by a person.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from willis.errors import StepError
from willis.outputs import check_replaceable, whole_folder
from willis.params import TrainParams, TuneParams
from willis.settings import Settings
from willis.training.search_space import check_space, draw, searched
from willis.training.trial import Course, Search, check_validation, objective, seen_table, trial_job
from willis.training.validation import is_better

if TYPE_CHECKING:
    from willis.training.search import Look

TRIALS, EPOCHS, BEST, PICTURE, SUMMARY = "trials.csv", "epochs.csv", "best.yaml", "trials.png", "tune.json"
NOTICE = (
    "Chosen on the validation split, which flatters the best trial; the test split was not read. "
    "For research, not for diagnosis."
)


class TuneSummary(BaseModel):
    """What `tune` found; tune.json.

    Attributes:
        metric: what trials were compared by, on validation.
        first_value: of trial 0, which is `train` as params.yaml has it; None where it failed.
        best: values of the searched keys in the best trial; best.yaml holds them for pasting.
        failures: trial -> reason.
        seconds: training time of all trials together.
        fingerprint: of data and parameters; a search with the same one is not run again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    num_trials: int
    num_finished: int
    num_stopped: int
    num_failed: int
    first_value: float | None
    best_trial: int
    best_value: float
    best_epoch: int
    best: dict[str, Any]
    failures: dict[int, str]
    seconds: float
    fingerprint: str
    notice: str = NOTICE


def tune(
    ingest: Path, features: Path, out: Path, train: TrainParams, params: TuneParams, settings: Settings
) -> TuneSummary:
    """Try values of `train` on the Ray cluster; a search that was killed goes on where it was.

    Args:
        ingest: output of `ingest`.
        features: output of `featurize`.
        out: trials.csv, epochs.csv, best.yaml, trials.png and tune.json go here, whole or not at all; until
            then the search lies beside it in `.NAME.search`.
        train: section `train` of params.yaml: the first trial, and what is not searched.
        params: section `tune`.
        settings: which Ray cluster.

    Returns:
        The summary, which tune.json holds as well.

    Raises:
        ParamsError: the space names or holds what `train` does not take.
        CohortError: too few outcomes in training or validation.
        RayError: no cluster, or one that is too small.
        StepError: every trial failed.
    """
    out = out.resolve()
    check_replaceable(out, SUMMARY)
    check_space(params, train)
    trials = draw(params, train)
    ingest, features, work = ingest.resolve(), features.resolve(), out.with_name(f".{out.name}.search")
    fingerprint = _fingerprint(ingest, features, train, params)
    known = _finished(out, fingerprint)
    if known is not None:
        return known
    search = Search(ingest, features, work / fingerprint[:16], work / "embeddings", trials)
    _clear_others(search)
    # The first trial's job, before anything starts: it tells of unfit data, and embeds the reports once.
    check_validation(trial_job(search, 0).cases, train.stop_on)
    courses = _searched(search, params, settings)
    summary = _write(courses, params, fingerprint, out)
    shutil.rmtree(work, ignore_errors=True)
    return summary


def _fingerprint(ingest: Path, features: Path, train: TrainParams, params: TuneParams) -> str:
    """Of everything a trial reads except the voxels, which ingest.json stands for."""
    summed = hashlib.sha256(seen_table(ingest, features).to_csv().encode())
    summed.update((ingest / "ingest.json").read_bytes())
    summed.update(f"{train.model_dump_json()}\n{params.model_dump_json()}".encode())
    return summed.hexdigest()


def _finished(out: Path, fingerprint: str) -> TuneSummary | None:
    try:
        summary = TuneSummary.model_validate_json((out / SUMMARY).read_text())
    except (OSError, ValidationError):
        return None
    return summary if summary.fingerprint == fingerprint else None


def _clear_others(search: Search) -> None:
    """Searches on other data or parameters that were killed are of no use any more."""
    kept = {search.folder, search.embeddings}
    for path in search.folder.parent.glob("*"):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    search.folder.mkdir(parents=True, exist_ok=True)


def _searched(search: Search, params: TuneParams, settings: Settings) -> list[Course]:
    from willis.training.search import search_on_cluster

    with _progress_bar(len(search.trials)) as look:
        courses = search_on_cluster(search, params, settings.ray_address, look)
    if all(course.fate == "failed" for course in courses):
        raise StepError(
            f"all {len(courses)} trials failed, the first because: {courses[0].reason}; "
            "change params.yaml: tune.space or train, and run `willis tune` again"
        )
    return courses


def _write(courses: list[Course], params: TuneParams, fingerprint: str, out: Path) -> TuneSummary:
    from willis.training.search_picture import draw_search

    best = _best(courses)
    summary = _summary(courses, best, params, fingerprint)
    with whole_folder(out, SUMMARY) as folder:
        _write_tables(courses, params, folder)
        _write_fragment(folder / BEST, summary)
        draw_search(folder / PICTURE, courses, best)
        (folder / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
    return summary


def _best(courses: list[Course]) -> Course:
    """A trial that failed is never recommended, however well it began."""
    best, *others = [course for course in courses if course.fate != "failed"]
    for course in others:
        best = course if is_better(course.best, best.best, course.params.stop_on) else best
    return best


def _value(course: Course) -> float | None:
    return objective(course.records, course.params.stop_on) if course.fate != "failed" else None


def _summary(courses: list[Course], best: Course, params: TuneParams, fingerprint: str) -> TuneSummary:
    fates = [course.fate for course in courses]
    return TuneSummary(
        metric="val_auc" if best.params.stop_on == "auc" else "val_loss",
        num_trials=len(courses),
        num_finished=fates.count("finished"),
        num_stopped=fates.count("stopped"),
        num_failed=fates.count("failed"),
        first_value=_value(courses[0]),
        best_trial=best.number,
        best_value=objective(best.records, best.params.stop_on),
        best_epoch=best.best.epoch,
        best=searched(best.params, params),
        failures={course.number: course.reason for course in courses if course.fate == "failed"},
        seconds=sum(record.seconds for course in courses for record in course.records),
        fingerprint=fingerprint,
    )


def _write_tables(courses: list[Course], params: TuneParams, folder: Path) -> None:
    import pandas as pd

    rows, epochs = [], []
    for course in courses:
        row: dict[str, Any] = {"trial": course.number, "fate": course.fate, "epochs": len(course.records)}
        if course.records:
            best = course.best
            row |= {"best_epoch": best.epoch, "val_loss": best.val_loss, "val_auc": best.val_auc}
        rows.append(row | searched(course.params, params) | {"reason": course.reason})
        epochs += [{"trial": course.number, **record.model_dump()} for record in course.records]
    pd.DataFrame(rows).to_csv(folder / TRIALS, index=False)
    pd.DataFrame(epochs).to_csv(folder / EPOCHS, index=False)


def _write_fragment(path: Path, summary: TuneSummary) -> None:
    from ruamel.yaml import YAML

    first = "failed" if summary.first_value is None else f"{summary.first_value:.4f}"
    with path.open("w") as file:
        file.write(
            f"# Trial {summary.best_trial} of {summary.num_trials}, epoch {summary.best_epoch}: "
            f"{summary.metric} {summary.best_value:.4f} (train as it stood: {first}).\n"
            f"# {NOTICE}\n# Put these over the same keys of params.yaml, then `willis train`.\n"
        )
        YAML().dump({"train": summary.best}, file)


@contextmanager
def _progress_bar(num_trials: int) -> Iterator["Look"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  TextColumn("{task.fields[said]}"), console=Console(stderr=True)) as bar:  # fmt: skip
        task = bar.add_task("tune", total=num_trials, said="waiting for the cluster")

        def look(courses: list[Course]) -> None:
            running = [course for course in courses if course.records and course.fate != "failed"]
            epochs = sum(len(course.records) for course in courses)
            bar.update(task, completed=sum(course.fate != "open" for course in courses))
            if running:
                best = _best(running)
                said = f"{epochs} epochs, best: trial {best.number} with {_value(best):.4f} on validation"
                bar.update(task, said=said)

        yield look
