"""One trial of a search: the loop of `train` in one process, on training and validation alone.

A trial's folder says how far it is, so that a search that was killed goes on from there: `epochs.jsonl` grows
by a line per epoch, `ended.json` appears when it is done or was stopped, `failure.json` when it failed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from willis.errors import CohortError, StepError, WillisError
from willis.params import TrainParams
from willis.training.dataset import Cases, encode, read_table
from willis.training.distributed import FAILURE, write_whole
from willis.training.loop import Job, Tick, World, fit
from willis.training.metrics import EpochRecord
from willis.training.validation import is_better

if TYPE_CHECKING:
    import pandas as pd

SEEN = ("train", "validation")
NAMES = ("patient_id", "study_id", "split", "event_timestamp")
EPOCHS, ENDED, CRASH, CHECKPOINTS = "epochs.jsonl", "ended.json", "crash.txt", "checkpoints"
Fate = Literal["finished", "stopped", "failed", "open"]


@dataclass(frozen=True)
class Search:
    """A search on disk; its paths must be readable from every node of the cluster.

    Attributes:
        folder: of this data and these parameters alone; one folder per trial in it.
        embeddings: cache of text embeddings.
        trials: parameters of each.
    """

    ingest: Path
    features: Path
    folder: Path
    embeddings: Path
    trials: tuple[TrainParams, ...]

    def trial(self, number: int) -> Path:
        """Folder of one trial."""
        return self.folder / f"trial-{number:03d}"


@dataclass(frozen=True)
class Course:
    """How far a trial came."""

    number: int
    params: TrainParams
    fate: Fate
    records: tuple[EpochRecord, ...]
    reason: str = ""

    @property
    def best(self) -> EpochRecord:
        """Record of the epoch whose weights `train` would keep."""
        return best_of(self.records, self.params.stop_on)


def seen_table(ingest: Path, features: Path) -> "pd.DataFrame":
    """Read the training table and empty every row that is neither in training nor in validation.

    The rows stay, for a row's number is its place in the shards; nothing of what they held does.
    """
    from willis.imaging.shards import StudyArrays

    frame = read_table(features, StudyArrays.open(ingest))
    seen = frame["split"].isin(SEEN)
    emptied = {
        name: frame[name].astype(object).where(seen, False if name.startswith("has_") else None)
        for name in frame.columns
        if name not in NAMES
    }
    return frame.assign(**emptied)


def trial_job(search: Search, number: int) -> Job:
    """Everything that one trial trains on; nothing of the test and calibration splits is in it."""
    from willis.imaging.shards import StudyArrays

    params = search.trials[number]
    frame = seen_table(search.ingest, search.features)
    cases, config = encode(frame, StudyArrays.open(search.ingest), params, search.embeddings)
    return Job.on(_without_images(cases), config, params, search.trial(number) / CHECKPOINTS, keep=1)


def check_validation(cases: Cases, stop_on: str) -> None:
    """See that trials can be compared.

    Raises:
        CohortError: nobody in validation has an outcome, or one class only where the AUC compares.
    """
    outcome = cases.outcome[cases.rows("validation", labelled_only=True)]
    classes = len(np.unique(outcome))
    if classes < (2 if stop_on == "auc" else 1):
        raise CohortError(
            f"the validation split has {len(outcome)} patients with an outcome, of {classes} classes; trials "
            f"cannot be compared by the {stop_on} (params.yaml: train.stop_on): make the cohort larger or "
            "change the shares (params.yaml: ingest.splits)"
        )


def run_trial(search: Search, number: int, report: Callable[[int, float], None]) -> None:
    """Train one trial from where it stands; every epoch is reported, those of an earlier start again.

    Args:
        search: which trials there are.
        number: which one to run.
        report: called with the epochs done and the objective; may end the process.
    """
    params, folder = search.trials[number], search.trial(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CRASH).unlink(missing_ok=True)
    torch.set_num_threads(params.threads_per_worker)
    try:
        _run(trial_job(search, number), folder, report)
    except WillisError as error:  # it would only come again, so that a new start is of no use
        write_failure(folder, str(error))
    except Exception as error:  # for the table, if no new start helps
        write_whole(folder / CRASH, f"{type(error).__name__}: {error}")
        raise


def crash_of(folder: Path) -> str:
    """Why the last start of a trial ended, as far as its process could say."""
    if (folder / CRASH).exists():
        return (folder / CRASH).read_text()
    return "its process died without a word, as it does when memory is used up"


def _run(job: Job, folder: Path, report: Callable[[int, float], None]) -> None:
    state = job.checkpoints.newest()
    records: list[EpochRecord] = []

    def note(record: EpochRecord) -> None:
        if not math.isfinite(record.val_loss):
            raise StepError(
                f"the validation loss is {record.val_loss} in epoch {record.epoch}; try smaller values "
                "(params.yaml: tune.space.learning_rate)"
            )
        records.append(record)
        write_whole(folder / EPOCHS, "".join(f"{one.model_dump_json()}\n" for one in records))
        report(len(records), objective(records, job.params.stop_on))

    def on_tick(tick: Tick) -> None:
        if tick.record is not None:
            note(tick.record)

    for record in state.history if state else ():
        note(record)
    device = torch.device("cuda" if job.params.use_gpu else "cpu")
    fit(job, World(device=device), on_tick)


def objective(records: "list[EpochRecord] | tuple[EpochRecord, ...]", stop_on: str) -> float:
    """Validation metric of the best epoch so far: what `train` would keep if it ended here."""
    best = best_of(records, stop_on)
    return best.val_auc if stop_on == "auc" and best.val_auc is not None else best.val_loss


def best_of(records: "list[EpochRecord] | tuple[EpochRecord, ...]", stop_on: str) -> EpochRecord:
    """The epoch that `train` would keep."""
    best = records[0]
    for record in records[1:]:
        best = record if is_better(record, best, stop_on) else best
    return best


def write_failure(folder: Path, reason: str) -> None:
    """Leave word of why a trial failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FAILURE, json.dumps({"message": reason}))


def read_course(search: Search, number: int) -> Course:
    """How far a trial is, from its folder."""
    params, folder = search.trials[number], search.trial(number)
    lines = (folder / EPOCHS).read_text().splitlines() if (folder / EPOCHS).exists() else []
    records = tuple(EpochRecord.model_validate_json(line) for line in lines)
    if (folder / FAILURE).exists():
        reason = json.loads((folder / FAILURE).read_text())["message"]
        return Course(number, params, "failed", records, reason)
    if not (folder / ENDED).exists() or not records:
        return Course(number, params, "open", records)
    return Course(number, params, "finished" if _ran_out(records, params) else "stopped", records)


def _ran_out(records: tuple[EpochRecord, ...], params: TrainParams) -> bool:
    """The loop itself ended the trial, as it would end a training run."""
    last = records[-1].epoch
    return last + 1 == params.epochs or last - best_of(records, params.stop_on).epoch >= params.patience


def _without_images(cases: Cases) -> Cases:
    seen = np.isin(cases.split, SEEN)
    cases = replace(cases, modality_present=cases.modality_present & seen[:, None])
    assert not cases.modality_present[~seen].any(), "a study outside training and validation can be looked at"
    assert np.isnan(cases.outcome[~seen]).all(), "an outcome outside training and validation is known"
    return cases
