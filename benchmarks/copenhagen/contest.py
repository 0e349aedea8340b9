"""Who answers which fold of which task.

Each (task, model, seed, repeat, fold) leaves one file of predictions, written whole: a killed contest goes on
with the first that is missing. A rival that does not install or dies leaves its reason and runs no more.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from benchmarks.copenhagen import models
from benchmarks.copenhagen.models import FOREST, Question, by_baseline, by_forest, by_network
from benchmarks.copenhagen.patients import Task
from benchmarks.rivals.environments import RivalError
from benchmarks.rivals.standings import Entry, averaged, rows_of
from infra.local.stages import key_of, write_whole
from willis.evaluation.baselines import KINDS, Kind
from willis.evaluation.folds import OURS, OutOfFold, with_progress
from willis.evaluation.plans import TASK, Plan, known_values
from willis.params import TrainParams
from willis.provenance import module_digests

SUBSET = "table"
RIVALS: tuple[Kind | str, ...] = (*KINDS, FOREST.name)


@dataclass(frozen=True)
class Run:
    """One model, once, on one fold of one task."""

    model: str
    seed: int
    question: Question

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.question.task.name}-{self.model}-{self.seed}-{self.question.fold.name}"


class Contest:
    """All models on all tasks."""

    def __init__(self, work: Path, plans: dict[Task, Plan], params: TrainParams, num_networks: int) -> None:
        """Set out a contest.

        Args:
            work: what each run leaves goes here.
            plans: who is tested by whom in each task.
            params: section `train`, for the network; its seed is the rivals' too.
            num_networks: per fold; each has a seed of its own, and by that other patients to stop early on.
        """
        self.work, self.plans, self.params = work, plans, params
        self.seeds = tuple(params.seed + number for number in range(num_networks))

    def rows(self) -> Iterator[dict[str, object]]:
        """Run what is missing; yield a row per task and model, and one per paired lead of ours."""
        runs = [
            Run(model, seed, Question(task, fold))
            for task, plan in self.plans.items()
            for fold in plan.folds
            for model, seeds in self._models().items()
            for seed in seeds
        ]
        # repeat by repeat, so that a run that is killed leaves whole repeats of every task
        runs.sort(key=lambda run: run.question.fold.repeat)
        dead = self._run([run for run in runs if not self._path(run).exists()])
        hours = sum(self._spent(run, "cpu_seconds") for run in runs if self._path(run).exists()) / 3600
        print(f"{hours:.2f} CPU hours, earlier starts included")
        for task, plan in self.plans.items():
            yield from self._rows(task, plan, dead)

    def _models(self) -> dict[str, tuple[int, ...]]:
        return {OURS: self.seeds} | dict.fromkeys(RIVALS, self.seeds[:1])

    def _run(self, missing: list[Run]) -> dict[str, str]:
        """Run each; return who died, and of what."""
        dead: dict[str, str] = {}
        todo = [(f"{run.question.task.name} {run.model}", run.question.fold) for run in missing]
        for _, run in zip(with_progress(todo), missing, strict=True):
            try:
                if run.model not in dead:
                    self._attempt(run)
            except RivalError as error:
                dead[run.model] = str(error)
        return dead

    def _attempt(self, run: Run) -> None:
        started, before = time.perf_counter(), _cpu_seconds()
        rows = self._predicted(run)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - before}
        path = self._path(run)
        write_whole(path.with_suffix(".json"), json.dumps(spent))
        partial = path.with_suffix(".partial")
        rows.to_parquet(partial, index=False)
        partial.replace(path)

    def _predicted(self, run: Run) -> pd.DataFrame:
        if run.model == FOREST.name:
            return by_forest(run.question, run.seed)
        if run.model in KINDS:
            return by_baseline(run.question, run.model, run.seed)
        work = self.work / "training" / run.name
        # a run of seconds is done again sooner than it is written down
        short = {"seed": run.seed, "checkpoint_every": self.params.epochs}
        rows = by_network(run.question, work, self.params.model_copy(update=short))
        shutil.rmtree(work, ignore_errors=True)
        return rows

    def _rows(self, task: Task, plan: Plan, dead: dict[str, str]) -> Iterator[dict[str, object]]:
        """Rows of one network and of the mean of all, each with its leads; rivals stand beside the latter."""
        tested = OutOfFold.of(plan, known_values(task.frame, TASK))
        rivals = [self._entry(rival, task, plan, tested, dead) for rival in RIVALS]
        ours = self._entry(OURS, task, plan, tested, dead)
        both = [ours, averaged(ours)] if len(self.seeds) > 1 else [ours]
        for entry in both:
            everybody, last = [entry, *rivals], entry is both[-1]
            found = rows_of(everybody, tested, entry.model, self.params.seed, task.name, rivals_too=last)
            yield from (row | {"num_censored": task.num_censored} for row in found)

    def _entry(self, model: str, task: Task, plan: Plan, tested: OutOfFold, dead: dict[str, str]) -> Entry:
        if model in dead:
            return Entry(model, SUBSET, (), 0.0, dead[model])
        seeds, questions = self._models()[model], [Question(task, fold) for fold in plan.folds]
        runs = [[Run(model, seed, question) for question in questions] for seed in seeds]
        said = tuple(
            tested.gathered({run.question.fold: pd.read_parquet(self._path(run)) for run in of_seed})
            for of_seed in runs
        )
        return Entry(model, SUBSET, said, sum(self._spent(run, "seconds") for each in runs for run in each))

    def _spent(self, run: Run, what: str) -> float:
        return float(json.loads(self._path(run).with_suffix(".json").read_text())[what])

    def _path(self, run: Run) -> Path:
        fold = run.question.fold
        key = key_of(run.question.task.digest, fold.test, fold.train, self._recipes[run.model])
        return self.work / "runs" / f"{run.name}-{key}.parquet"

    @cached_property
    def _recipes(self) -> dict[str, str]:
        """Digest of all that decides what a model says, but for patients and seed."""
        handed = Path(models.__file__).read_text()
        network = module_digests("willis.evaluation.fold_training")
        baselines = module_digests("willis.evaluation.baselines")
        return {
            OURS: key_of(handed, network, self.params.model_copy(update={"seed": 0}).model_dump_json()),
            FOREST.name: key_of(handed, FOREST.key()),
        } | {kind: key_of(handed, baselines) for kind in KINDS}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])
