"""AUC against the number of labelled patients, for several ways to train: what such benchmarks share.

One synthetic cohort (purpose benchmark): its first patients are tested, of the others the first so many of a
seed's order have a label, 15 % of them for early stopping. Every arm trains on the same labelled patients.

AUC is the mean over seeds. Intervals, those of the differences too, resample the tested patients, who are
the same for every arm, number of labels and seed; they hold for these seeds. Killed, a benchmark goes on with
the first (labels, arm, subset, seed) that is missing.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks.results import mean_and_interval, write_results
from infra.local.stages import folder_made, key_of, write_whole
from willis.cohort.synthetic import synthesise
from willis.evaluation.fold_training import train_fold
from willis.evaluation.folds import validation_of
from willis.evaluation.metrics import Numbers, auc, auc_of_resamples, bootstrap_counts, percentile_interval
from willis.evaluation.patients import Cohort
from willis.params import Params, TrainParams
from willis.provenance import module_digests

NUM_BOOTSTRAP = 2000
CONFIDENCE = 0.95
SEED = 31
"""Of the cohort."""


def _nothing(_: int) -> None:
    """From nothing."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: in files and rows.
        ingest, features: output folders of the two steps.
        encoder: seed -> weights that the image encoder starts from, if any.
    """

    name: str
    ingest: Path
    features: Path
    encoder: Callable[[int], Path | None] = _nothing


@dataclass(frozen=True)
class Cell:
    """One training run."""

    labels: int
    arm: str
    subset: str
    seed: int

    @property
    def task(self) -> str:
        """Name of the task in the rows."""
        return f"poor_outcome_{self.labels}_labels"

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.task}-{self.arm}-{self.subset}-{self.seed}"


@dataclass(frozen=True)
class Patients:
    """Who may be learned from, who is tested, and patient -> 1 poor, 0 good."""

    pool: tuple[str, ...]
    tested: tuple[str, ...]
    outcome: dict[str, float]

    @classmethod
    def of(cls, ingest: Path, features: Path, num_tested: int) -> "Patients":
        """Divide the patients of a cohort whose outcome is known."""
        frame = Cohort.read(ingest, features).frame
        known = frame[frame["poor_outcome"].notna()]
        names, poor = known["patient_id"].astype(str), known["poor_outcome"].astype(float)
        outcome = dict(zip(names, poor, strict=True))
        patients = sorted(outcome)
        return cls(tuple(patients[num_tested:]), tuple(patients[:num_tested]), outcome)

    def dealt(self, seed: int) -> "Patients":
        """The same patients, as many tested, drawn by a seed."""
        order = np.random.default_rng([seed, 2]).permutation(sorted(self.outcome))
        num_tested = len(self.tested)
        tested, pool = (tuple(sorted(map(str, part))) for part in np.split(order, [num_tested]))
        return replace(self, pool=pool, tested=tested)

    def split(self, cell: Cell) -> dict[str, str]:
        """Say who is in which split of one run; all arms have the same."""
        order = np.random.default_rng([cell.seed, 1]).permutation(len(self.pool))
        labelled = tuple(self.pool[k] for k in order[: cell.labels])
        validation = validation_of(labelled, self.outcome, cell.seed)
        split = {patient: "validation" if patient in validation else "train" for patient in labelled}
        return split | dict.fromkeys(self.tested, "test")


@dataclass(frozen=True)
class Curve:
    """All runs of one benchmark.

    Attributes:
        work: folder of these parameters, this code and these sizes.
        arms: the first is the one that the others are held against.
        subsets: name -> what it changes in `train`.
    """

    work: Path
    arms: tuple[Arm, ...]
    subsets: Mapping[str, Mapping[str, object]]
    train: TrainParams
    patients: Patients

    def measure(self, labels: list[int], num_seeds: int) -> list[dict[str, object]]:
        """Train what is missing; return a row per labels, subset and arm, and one per paired difference."""
        cells = [
            Cell(num, arm.name, subset, seed)
            for seed in range(num_seeds)
            for subset in self.subsets
            for num in labels
            for arm in self.arms
        ]
        missing = [cell for cell in cells if not self._path(cell).exists()]
        for number, cell in enumerate(missing, start=1):
            print(f"{cell.name} ({number} of {len(missing)})", flush=True)
            self._run(cell)
        hours = sum(self._record(cell)["cpu_seconds"] for cell in cells) / 3600
        print(f"{hours:.2f} CPU hours, earlier starts of the same runs included")
        return list(self._rows(cells))

    def _rows(self, cells: list[Cell]) -> Iterator[dict[str, object]]:
        outcome = np.array([self.patients.outcome[patient] for patient in self.patients.tested])
        counts = bootstrap_counts(outcome.size, NUM_BOOTSTRAP, seed=7)
        reference = self.arms[0].name
        for task, subset in dict.fromkeys((cell.task, cell.subset) for cell in cells):
            common = {"task": task, "subset": subset, "num_patients": outcome.size}
            areas: dict[str, tuple[float, Numbers]] = {}
            for arm in self.arms:
                own = [
                    cell for cell in cells if (cell.task, cell.subset, cell.arm) == (task, subset, arm.name)
                ]
                value, draws = areas[arm.name] = self._mean_area(own, outcome, counts)
                seconds = sum(self._record(cell)["seconds"] for cell in own)
                yield (
                    common
                    | {"model": arm.name, "metric": "auc", "seconds": seconds}
                    | interval_fields(value, draws)
                )
            base, base_draws = areas.pop(reference)
            for name, (value, draws) in areas.items():
                lead = {"model": f"{name} over {reference}", "metric": "auc_lead"}
                yield common | lead | interval_fields(value - base, draws - base_draws)

    def _mean_area(self, runs: list[Cell], outcome: Numbers, counts: Numbers) -> tuple[float, Numbers]:
        """Mean AUC over seeds, and the same in every resample of patients."""
        scores = []
        for cell in runs:
            predicted = pd.read_parquet(self._path(cell)).set_index("patient_id")["p"]
            scores.append(predicted.loc[list(self.patients.tested)].to_numpy(np.float64))
        return mean_area(outcome, scores, counts)

    def _run(self, cell: Cell) -> None:
        """Train, predict, and leave both files whole."""
        started, before = time.perf_counter(), time.process_time()
        arm = next(arm for arm in self.arms if arm.name == cell.arm)
        weights = arm.encoder(cell.seed)
        work = self.work / "runs" / f"{cell.name}.part"
        params = self.train.model_copy(update={"seed": cell.seed, **self.subsets[cell.subset]})
        split = self.patients.split(cell)
        cache = self.work / f"embeddings-{arm.name}"
        predictor = train_fold(arm.ingest, arm.features, split, work, cache, params, weights)
        cohort = Cohort.read(arm.ingest, arm.features)
        rows = cohort.frame[cohort.frame["patient_id"].isin(self.patients.tested)].reset_index(drop=True)
        p = predictor.probabilities(predictor.encode(cohort.patients(rows).cases))
        path = self._path(cell)
        partial = path.with_suffix(".partial")
        rows[["patient_id"]].assign(p=p).to_parquet(partial, index=False)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
        write_whole(path.with_suffix(".json"), json.dumps(spent))
        partial.replace(path)
        shutil.rmtree(work, ignore_errors=True)

    def _path(self, cell: Cell) -> Path:
        return self.work / "runs" / f"{cell.name}.parquet"

    def _record(self, cell: Cell) -> dict[str, float]:
        found: dict[str, float] = json.loads(self._path(cell).with_suffix(".json").read_text())
        return found


def mean_area(outcome: Numbers, scores: Sequence[Numbers], counts: Numbers) -> tuple[float, Numbers]:
    """Mean AUC of several scores of the same patients, and the same in every resample of patients."""
    value = float(np.mean([auc(outcome, score) for score in scores]))
    return value, np.mean([auc_of_resamples(outcome, score, counts) for score in scores], axis=0)


def interval_fields(value: float, draws: Numbers) -> dict[str, object]:
    """A value with its interval, as it stands in a row."""
    it = percentile_interval(value, draws, CONFIDENCE)
    return {"mean": it.value, "low": it.low, "high": it.high}


def make_cohort(params: Params, arguments: argparse.Namespace) -> Path:
    """Make the synthetic cohort once; returns its folder."""
    section = params.cohort.model_copy(
        update={"num_patients": arguments.patients, "seed": SEED, "preset": arguments.preset}
    )
    cohort = Path(arguments.work.resolve() / f"cohort-{arguments.preset}-{arguments.patients}")
    folder_made(
        cohort,
        key_of(section.model_dump(), module_digests("willis.cohort.synthetic")),
        lambda: synthesise(cohort, section, purpose="benchmark"),
    )
    return cohort


def folder_of(arguments: argparse.Namespace, *read: object) -> Path:
    """Return the folder of the runs that read the same parameters and code, in the same sizes."""
    code = module_digests("willis.evaluation.fold_training")
    sizes = (arguments.tested, arguments.patients, arguments.preset)
    work: Path = arguments.work.resolve() / key_of(*read, code, sizes)
    (work / "runs").mkdir(parents=True, exist_ok=True)
    return work


def add_arguments(parser: argparse.ArgumentParser, name: str, labels: list[int], patients: int) -> None:
    """Add what every learning curve is asked for."""
    add_size_arguments(parser, name, patients)
    parser.add_argument("--labels", type=int, nargs="+", default=labels)


def add_size_arguments(parser: argparse.ArgumentParser, name: str, patients: int, seeds: int = 3) -> None:
    """Add where a benchmark works, on how many patients, how often."""
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--work", type=Path, default=Path("build/bench") / name)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--preset", default="published", help="of the synthetic cohort")
    parser.add_argument("--patients", type=int, default=patients, help="of the cohort")
    parser.add_argument("--tested", type=int, default=1000, help="of them; the others are the pool")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--epochs", type=int, help="of training; params.yaml otherwise")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; no run may ask for more labels than the pool has."""
    arguments = parser.parse_args()
    if max(arguments.labels) > arguments.patients - arguments.tested:
        parser.error("--labels asks for more patients than the pool has: --patients less --tested")
    return arguments


def train_params(params: Params, arguments: argparse.Namespace) -> TrainParams:
    """Return the section `train`, with the epochs of the command line."""
    return params.train.model_copy(update={"epochs": arguments.epochs} if arguments.epochs else {})


def tell(rows: list[dict[str, object]], path: Path | None, arguments: argparse.Namespace) -> None:
    """Print a table; write JSON where it is asked for."""
    table = Table("task", "subset", "model", "metric", "mean", "95 % interval")
    for row in rows:
        words = [str(row[name]) for name in ("task", "subset", "model", "metric")]
        table.add_row(*words, *mean_and_interval(row))
    Console().print(table)
    if path:
        write_results(path, rows, arguments)
