"""What everybody predicted for the same tested patients, as rows of one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.learning_curve import interval_fields
from willis.evaluation.folds import NUM_BOOTSTRAP, OutOfFold, fold_areas, mean_area_draws
from willis.evaluation.metrics import Numbers, bootstrap_counts
from willis.evaluation.plans import TASK


@dataclass(frozen=True)
class Entry:
    """One model on one subset of the columns.

    Attributes:
        predictions: one array (repeats, n) per seed; none where there is a reason instead.
        seconds: of all its folds and seeds together.
        reason: why there is no number.
    """

    model: str
    subset: str
    predictions: tuple[Numbers, ...]
    seconds: float
    reason: str = ""


def averaged(entry: Entry) -> Entry:
    """Of each patient the mean of what an entry says in all its seeds."""
    name = f"{entry.model}_mean_of_{len(entry.predictions)}"
    return Entry(name, entry.subset, (np.mean(entry.predictions, axis=0),), entry.seconds)


def rows_of(
    entries: Sequence[Entry],
    tested: OutOfFold,
    ours: str,
    seed: int,
    task: str = TASK,
    *,
    rivals_too: bool = True,
) -> Iterator[dict[str, object]]:
    """Yield a row per entry, and one per paired lead of ours.

    AUC is the mean over folds, repeats and seeds. Intervals resample patients, and keep them across all of
    these and across entries.

    Args:
        entries: those without predictions get a row with their reason and no numbers.
        tested: the patients.
        ours: the model whose leads are measured.
        seed: of the bootstrap.
        task: what everybody was asked.
        rivals_too: yield the rivals' own rows, which a second of ours does not need again.
    """
    counts = bootstrap_counts(tested.outcome.size, NUM_BOOTSTRAP, seed)
    areas = {(it.model, it.subset): _mean_area(it, tested, counts) for it in entries if it.predictions}
    lead = next((area for (model, _), area in areas.items() if model == ours), None)
    common = {"task": task, "num_patients": tested.outcome.size}
    for entry in entries:
        own = common | {"subset": entry.subset, "seconds": entry.seconds}
        shown = rivals_too or entry.model == ours
        if not entry.predictions:
            nothing = {"mean": None, "low": None, "high": None, "reason": entry.reason}
            if shown:
                yield own | {"model": entry.model, "metric": "auc"} | nothing
            continue
        value, draws = areas[entry.model, entry.subset]
        if shown:
            yield own | {"model": entry.model, "metric": "auc"} | interval_fields(value, draws)
        if lead is not None and entry.model != ours:
            over = {"model": f"{ours} over {entry.model}", "metric": "auc_lead"}
            yield own | over | interval_fields(lead[0] - value, lead[1] - draws)


def _mean_area(entry: Entry, tested: OutOfFold, counts: Numbers) -> tuple[float, Numbers]:
    """Mean AUC over folds, repeats and seeds, and the same in every resample of patients."""
    areas = [fold_areas(tested.outcome, p, tested.member) for p in entry.predictions]
    draws = [mean_area_draws(tested.outcome, p, tested.member, counts) for p in entry.predictions]
    return float(np.mean(areas)), np.mean(draws, axis=0)
