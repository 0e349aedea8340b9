"""Who runs on which fold.

Each (task, model, subset, seed) leaves one file per fold, written whole: a killed race goes on with the first
that is missing. A rival that does not install or dies leaves its reason and runs no more.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.rivals import handout
from benchmarks.rivals.environments import Rival, RivalError, python_of, run_script
from benchmarks.rivals.handout import PATIENT, Handout, Material
from benchmarks.rivals.standings import Entry
from infra.local.stages import key_of, write_whole
from willis.evaluation.folds import OutOfFold
from willis.evaluation.plans import TASK, Fold, Plan

SUBSETS: dict[str, tuple[str, ...]] = {"table_facts": ("table", "facts"), "all": handout.BLOCKS}


@dataclass(frozen=True)
class Run:
    """One script, once."""

    rival: Rival
    subset: str
    seed: int
    fold: Fold

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{TASK}-{self.rival.name}-{self.subset}-{self.seed}-{self.fold.name}"


class Race:
    """All runs of some rivals on one plan."""

    def __init__(
        self,
        work: Path,
        data: str,
        plan: Plan,
        budget_s: float,
        material: Callable[[], Material],
        python: Callable[[Rival], Path] = python_of,
    ) -> None:
        """Set out a race.

        Args:
            work: what each run leaves goes here.
            data: digest of the patients; others are another race.
            plan: who is tested by whom.
            budget_s: CPU seconds of one run.
            material: reads the patients; called once, and only when something has to be run.
            python: returns the interpreter of a rival's environment.
        """
        self.runs = work / "runs"
        self.data, self.plan, self.budget_s, self.python = data, plan, budget_s, python
        read = cache(material)
        self._handout: Callable[[Fold], Handout] = cache(lambda fold: read().handout(fold))

    def entries(
        self, rivals: Sequence[Rival], subsets: Sequence[str], seeds: Sequence[int], tested: OutOfFold
    ) -> list[Entry]:
        """Run what is missing, rival by rival; return an entry per rival and subset, the dead ones too."""
        places = [(rival, subset) for rival in rivals for subset in subsets]
        runs = [Run(*place, seed, fold) for place in places for seed in seeds for fold in self.plan.folds]
        dead = self._run([run for run in runs if not self._path(run).exists()])
        there = [run for run in runs if self._path(run).exists()]
        hours = sum(self._spent(run, "cpu_seconds") for run in there) / 3600
        print(f"{hours:.2f} CPU hours of rivals in environments of their own, earlier starts included")
        return [
            self._entry([run for run in there if (run.rival, run.subset) == place], place, seeds, tested)
            if place not in dead
            else Entry(place[0].name, place[1], (), 0.0, dead[place])
            for place in places
        ]

    def _run(self, missing: list[Run]) -> dict[tuple[Rival, str], str]:
        """Run each; return who died, and of what."""
        pythons, dead = self._installed(missing)
        for number, run in enumerate(missing, start=1):
            place = (run.rival, run.subset)
            if place in dead:
                continue
            print(f"{run.name} ({number} of {len(missing)})", flush=True)
            try:
                self._attempt(run, pythons[run.rival])
            except RivalError as error:
                dead[place] = str(error)
        return dead

    def _installed(self, missing: list[Run]) -> tuple[dict[Rival, Path], dict[tuple[Rival, str], str]]:
        pythons: dict[Rival, Path] = {}
        dead: dict[tuple[Rival, str], str] = {}
        for rival in dict.fromkeys(run.rival for run in missing):
            try:
                pythons[rival] = self.python(rival)
            except RivalError as error:
                dead |= {(rival, run.subset): str(error) for run in missing if run.rival == rival}
        return pythons, dead

    def _attempt(self, run: Run, python: Path) -> None:
        """Give the script a folder that holds one fold and nothing else; keep its predictions."""
        given = self._handout(run.fold).only(SUBSETS[run.subset])
        folder = Path(tempfile.mkdtemp(prefix="willis-rival-"))
        try:
            given.write(folder)
            spent = run_script(run.rival, python, folder, self.budget_s, run.seed)
            rows = checked(folder / "predictions.parquet", given.test)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        path = self._path(run)
        write_whole(path.with_suffix(".json"), json.dumps(asdict(spent)))
        partial = path.with_suffix(".partial")
        rows.to_parquet(partial, index=False)
        partial.replace(path)

    def _entry(
        self, runs: list[Run], place: tuple[Rival, str], seeds: Sequence[int], tested: OutOfFold
    ) -> Entry:
        predictions = tuple(
            tested.gathered({run.fold: pd.read_parquet(self._path(run)) for run in runs if run.seed == seed})
            for seed in seeds
        )
        return Entry(place[0].name, place[1], predictions, sum(self._spent(run, "seconds") for run in runs))

    def _spent(self, run: Run, what: str) -> float:
        return float(json.loads(self._path(run).with_suffix(".json").read_text())[what])

    def _path(self, run: Run) -> Path:
        recipe = Path(handout.__file__).read_text()
        key = key_of(self.data, run.fold.test, run.fold.train, self.budget_s, run.rival.key(), recipe)
        return self.runs / f"{run.name}-{key}.parquet"


def checked(path: Path, test: pd.DataFrame) -> pd.DataFrame:
    """Read a rival's predictions: each tested patient once, each a number.

    Raises:
        RivalError: they are something else.
    """
    if not path.is_file():
        raise RivalError("ended without an error and left no predictions")
    rows = pd.read_parquet(path, columns=[PATIENT, "p"])
    if sorted(rows[PATIENT]) != sorted(test[PATIENT]):
        raise RivalError(f"left {len(rows)} predictions, not one for each of {len(test)} tested patients")
    unknown = int((~np.isfinite(rows["p"].to_numpy(np.float64))).sum())
    if unknown:
        raise RivalError(f"left {unknown} predictions that are not a number")
    return rows
