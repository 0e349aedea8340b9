"""Who is tested by whom: given folds, each site in turn, or each period on those before it.

Willis keeps a patient's latest study; `frame` is one row per patient (`willis.evaluation.patients.Cohort`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from willis.errors import CohortError, ParamsError

if TYPE_CHECKING:
    import pandas as pd

TASK, NIHSS = "poor_outcome", "nihss"
TASKS = (TASK, NIHSS)
"""What folds may be given for: a column of the training table each."""
NUM_PERIODS = 5
"""The first is trained on alone, each of the others is tested by all before it."""
By = Literal["site", "period"]


@dataclass(frozen=True)
class Fold:
    """One fold of one repeat: who is tested, and who may be trained on.

    Attributes:
        label: what the tested patients share, for people: a fold's number, a site, a period.
    """

    repeat: int
    number: int
    test: tuple[str, ...]
    train: tuple[str, ...]
    label: str

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"r{self.repeat}-f{self.number}"


@dataclass(frozen=True)
class Plan:
    """Folds in order, and who could not be used.

    Attributes:
        absent: patients of a folds file who have no outcome among the ingested.
        untested: groups that are trained on but cannot be tested, each with its reason.
    """

    folds: tuple[Fold, ...]
    absent: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()

    def digest(self) -> str:
        """Name the plan by who is trained on and tested."""
        return hashlib.sha256(repr([astuple(fold) for fold in self.folds]).encode()).hexdigest()


def read_folds(path: Path, task: str, frame: "pd.DataFrame", repeats: int | None = None) -> Plan:
    """Read given folds and leave out patients who were not ingested.

    Args:
        path: TSV with columns task, repeat, fold, participant_id.
        task: which rows, and what must be known of a patient: `poor_outcome` or `nihss`.
        frame: patients with `patient_id` and the task's column.
        repeats: use only the first so many.

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
    if task not in TASKS or task not in set(plan["task"]):
        raise ParamsError(
            f"task is {task!r}; {path} has {sorted(set(plan['task']))}, and {' and '.join(TASKS)} can be "
            "evaluated"
        )
    plan = plan[plan["task"] == task]
    twice = plan.duplicated(["repeat", "participant_id"])
    if twice.any():
        first = plan[twice].iloc[0]
        raise ParamsError(
            f"{path}: {first['participant_id']!r} is in two folds of repeat {first['repeat']}; "
            "each patient is tested once per repeat"
        )
    outcome = known_values(frame, task)
    there = plan["participant_id"].isin(list(outcome))
    absent = tuple(sorted(set(plan.loc[~there, "participant_id"])))
    if there.mean() <= 0.5:
        raise CohortError(
            f"{len(absent)} patients of {path} have no {task} among the ingested, first {absent[0]!r}; "
            "these folds are of another cohort"
        )
    plan = plan[there]
    once = plan.groupby("participant_id")["repeat"].nunique()
    if once.nunique() > 1:
        raise CohortError(f"{path}: {(once < once.max()).sum()} patients are not tested in every repeat")
    found = sorted(_given(plan), key=lambda fold: (fold.repeat, fold.number))
    kept = tuple(fold for fold in found if repeats is None or fold.repeat < repeats)
    for fold in kept if task == TASK else ():
        _check(fold, outcome, path)
    return Plan(kept, absent)


def folds_by(by: By, frame: "pd.DataFrame") -> Plan:
    """Test each site by the others, or each period by those before it.

    Args:
        by: `site`, or `period`: fifths of the patients in the order of their scans.
        frame: patients with `patient_id`, `poor_outcome`, `site` and `event_timestamp`.

    Raises:
        CohortError: fewer than two sites, or none that can be tested; a period has one class.
    """
    known = frame[frame["poor_outcome"].notna()]
    return _by_site(known) if by == "site" else _by_period(known)


def dealt_folds(frame: "pd.DataFrame", num_folds: int, repeats: int, seed: int) -> Plan:
    """Deal the patients with an outcome into folds, the same share of each outcome in every fold.

    Args:
        frame: patients with `patient_id` and `poor_outcome`.
        num_folds: of each repeat.
        repeats: how often they are dealt; fewer repeats are the first of more.
        seed: of the first deal; each further repeat has the next one.

    Raises:
        CohortError: an outcome has fewer patients than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    known = frame[frame["poor_outcome"].notna()].sort_values("patient_id")
    outcome = known["poor_outcome"].astype(int)
    if min((outcome == value).sum() for value in (0, 1)) < num_folds:
        raise CohortError(
            f"{_count(known)}, cannot be dealt into {num_folds} folds; both outcomes must occur in each"
        )
    folds = []
    for repeat in range(repeats):
        dealt = StratifiedKFold(num_folds, shuffle=True, random_state=seed + repeat).split(known, outcome)
        for number, (train, test) in enumerate(dealt):
            label = f"repeat {repeat}, fold {number}"
            folds.append(Fold(repeat, number, _ids(known.iloc[test]), _ids(known.iloc[train]), label))
    return Plan(tuple(folds))


def labelled_draws(frame: "pd.DataFrame", num_labels: int, repeats: int, seed: int) -> Plan:
    """Test the test split by so many of the others, drawn anew in each repeat.

    Larger draws of a repeat hold its smaller ones.

    Args:
        frame: patients with `patient_id`, `poor_outcome` and `split`.
        num_labels: how many to learn from.
        repeats: how many draws.
        seed: of the draws.

    Raises:
        ParamsError: there are fewer, or a draw lacks one outcome.
        CohortError: the test split lacks one outcome.
    """
    known = frame[frame["poor_outcome"].notna()].sort_values("patient_id")
    tested, pool = known[known["split"] == "test"], known[known["split"] != "test"]
    if tested["poor_outcome"].nunique() < 2:
        raise CohortError(f"the test split has {_count(tested)}; both outcomes must occur")
    if num_labels > len(pool):
        raise ParamsError(
            f"{num_labels} patients are asked for; {len(pool)} outside the test split have an outcome"
        )
    folds = []
    for repeat in range(repeats):
        drawn = pool.iloc[np.random.default_rng([seed, repeat]).permutation(len(pool))[:num_labels]]
        if drawn["poor_outcome"].nunique() < 2:
            raise ParamsError(f"a draw of {num_labels} has {_count(drawn)}; ask for more")
        label = f"{num_labels} patients, draw {repeat}"
        folds.append(Fold(repeat, 0, _ids(tested), _ids(drawn), label))
    return Plan(tuple(folds))


def _by_site(known: "pd.DataFrame") -> Plan:
    """A site of one outcome has no AUC; its patients are trained on like all others."""
    sites = known["site"].astype("string").fillna("")
    names = sorted(set(sites) - {""})
    if len(names) < 2:
        raise CohortError(
            f"the patients with an outcome come from {len(names)} site(s), {names}; leaving one out needs "
            "two (column `site` of the cohort's participants.tsv)"
        )
    folds: list[Fold] = []
    untested: list[str] = []
    for name in names:
        here, others = known[sites == name], known[sites != name]
        if here["poor_outcome"].nunique() < 2 or others["poor_outcome"].nunique() < 2:
            untested.append(f"{name}: {_count(here)}; both outcomes must occur there and elsewhere")
        else:
            folds.append(Fold(0, len(folds), _ids(here), _ids(others), name))
    if not folds:
        raise CohortError("no site can be tested: " + "; ".join(untested))
    return Plan(tuple(folds), untested=tuple(untested))


def _by_period(known: "pd.DataFrame") -> Plan:
    """Patients of the same moment stay together, in the later period."""
    ordered = known.sort_values(["event_timestamp", "patient_id"])
    times = ordered["event_timestamp"].to_numpy("datetime64[us]")
    starts = times[[len(times) * k // NUM_PERIODS for k in range(1, NUM_PERIODS)]]
    period = np.searchsorted(starts, times, side="right")
    folds = []
    for number in range(1, NUM_PERIODS):
        now, before = ordered[period == number], ordered[period < number]
        if min(now["poor_outcome"].nunique(), before["poor_outcome"].nunique()) < 2:
            raise CohortError(
                f"period {number} of {NUM_PERIODS} has {_count(now)}, those before it {_count(before)}; both "
                "outcomes must occur in each: the cohort is too small, or its scans share one moment"
            )
        first, last = (f"{moment:%Y-%m-%d}" for moment in now["event_timestamp"].iloc[[0, -1]])
        folds.append(Fold(0, number - 1, _ids(now), _ids(before), f"{first} to {last}"))
    return Plan(tuple(folds))


def _ids(rows: "pd.DataFrame") -> tuple[str, ...]:
    return tuple(rows["patient_id"].astype(str))


def _count(rows: "pd.DataFrame") -> str:
    return f"{len(rows)} patients, {int(rows['poor_outcome'].sum())} of them poor"


def known_values(frame: "pd.DataFrame", column: str) -> dict[str, float]:
    """Patient -> value of a column, of those who have one."""
    known = frame.loc[frame[column].notna(), ["patient_id", column]]
    return dict(zip(known["patient_id"].astype(str), known[column].astype(float), strict=True))


def _given(plan: "pd.DataFrame") -> Iterator[Fold]:
    for repeat, number in plan[["repeat", "fold"]].drop_duplicates().itertuples(index=False):
        rows = plan[plan["repeat"] == repeat]
        tested = rows["fold"] == number
        test, train = (tuple(rows.loc[part, "participant_id"]) for part in (tested, ~tested))
        yield Fold(int(repeat), int(number), test, train, f"repeat {repeat}, fold {number}")


def _check(fold: Fold, outcome: dict[str, float], path: Path) -> None:
    for part, patients in (("test", fold.test), ("training", fold.train)):
        num_poor = sum(outcome[p] for p in patients)
        if num_poor in (0, len(patients)):
            raise CohortError(
                f"{path}: {part} part of fold {fold.name} has {len(patients)} patients, {num_poor:g} of them "
                "poor; both classes must occur (fewer patients than folds?)"
            )
