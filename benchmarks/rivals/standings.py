"""What everybody predicted for the same tested patients, as rows of one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from willis.evaluation.folds import CONFIDENCE, NUM_BOOTSTRAP, fold_areas, mean_area_draws
from willis.evaluation.metrics import Numbers, bootstrap_counts, percentile_interval
from willis.evaluation.plans import TASK, Fold, Plan


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

    def gathered(self, predicted: Mapping[Fold, pd.DataFrame]) -> Numbers:
        """Lay out the predictions (`patient_id`, `p`) of all folds as (repeats, n)."""
        found = np.full(self.member.shape, np.nan)
        place = {patient: k for k, patient in enumerate(self.patients)}
        for fold, rows in predicted.items():
            found[self.repeats.index(fold.repeat), [place[p] for p in rows["patient_id"]]] = rows["p"]
        return found


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


def rows_of(entries: Sequence[Entry], tested: OutOfFold, ours: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row per entry, and one per paired lead of ours.

    AUC is the mean over folds, repeats and seeds. Intervals resample patients, and keep them across all of
    these and across entries.

    Args:
        entries: those without predictions get a row with their reason and no numbers.
        tested: the patients.
        ours: the model whose leads are measured.
        seed: of the bootstrap.
    """
    counts = bootstrap_counts(tested.outcome.size, NUM_BOOTSTRAP, seed)
    areas = {(it.model, it.subset): _mean_area(it, tested, counts) for it in entries if it.predictions}
    lead = next((area for (model, _), area in areas.items() if model == ours), None)
    common = {"task": TASK, "num_patients": tested.outcome.size}
    for entry in entries:
        own = common | {"subset": entry.subset, "seconds": entry.seconds}
        if not entry.predictions:
            nothing = {"mean": None, "low": None, "high": None, "reason": entry.reason}
            yield own | {"model": entry.model, "metric": "auc"} | nothing
            continue
        value, draws = areas[entry.model, entry.subset]
        yield own | {"model": entry.model, "metric": "auc"} | _interval(value, draws)
        if lead is not None and entry.model != ours:
            over = {"model": f"{ours} over {entry.model}", "metric": "auc_lead"}
            yield own | over | _interval(lead[0] - value, lead[1] - draws)


def _mean_area(entry: Entry, tested: OutOfFold, counts: Numbers) -> tuple[float, Numbers]:
    """Mean AUC over folds, repeats and seeds, and the same in every resample of patients."""
    areas = [fold_areas(tested.outcome, p, tested.member) for p in entry.predictions]
    draws = [mean_area_draws(tested.outcome, p, tested.member, counts) for p in entry.predictions]
    return float(np.mean(areas)), np.mean(draws, axis=0)


def _interval(value: float, draws: Numbers) -> dict[str, object]:
    it = percentile_interval(value, draws, CONFIDENCE)
    return {"mean": it.value, "low": it.low, "high": it.high}
