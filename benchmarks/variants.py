"""Networks that learn from the same patients and differ in one thing: what such benchmarks share.

One synthetic cohort (purpose benchmark) with reports from the measured facts: its first patients are tested,
all others are learned from, 15 % of them for early stopping. A variant is trained once per seed and leaves
the scores of the tested patients in one file; killed, a benchmark goes on with the first that is missing.

AUC is the mean over seeds. Intervals, those of differences too, resample the tested patients.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from benchmarks.learning_curve import (
    NUM_BOOTSTRAP,
    Cell,
    Patients,
    folder_of,
    interval_fields,
    make_cohort,
    mean_area,
    train_params,
)
from benchmarks.prepared import prepared
from infra.local.stages import write_whole
from willis.evaluation import patients as evaluated
from willis.evaluation.ceiling import read_truth, refuse_leaks
from willis.evaluation.fold_training import train_fold
from willis.evaluation.metrics import Numbers, bootstrap_counts
from willis.inference import Predictor
from willis.params import ReportParams, TrainParams, load_params

Scores = dict[str, list[Numbers]]
"""What is asked of a variant -> one score per tested patient for each seed."""


@dataclass(frozen=True)
class Variant:
    """One network: its name in files and rows, what it changes in `train`, and on how many of the pool."""

    name: str
    changes: Mapping[str, object] = field(default_factory=dict)
    labels: int | None = None


@dataclass(frozen=True)
class Asked:
    """What a trained network is asked about.

    Attributes:
        tested: the same for every variant and seed.
        learned: rows of all patients to learn from, for its rivals.
        validation: those of them whom the network stopped early on.
        left_out: patients of the pool whom this variant did without.
    """

    predictor: Predictor
    tested: evaluated.Patients
    learned: pd.DataFrame
    validation: evaluated.Patients
    left_out: evaluated.Patients
    seed: int


Ask = Callable[[Asked], Mapping[str, Numbers]]


@dataclass(frozen=True)
class Bench:
    """One cohort, brought to arrays and a training table, and the seeds that everything is trained with."""

    work: Path
    cohort: Path
    ingest: Path
    features: Path
    train: TrainParams
    patients: Patients
    seeds: tuple[int, ...]

    @classmethod
    def prepare(cls, arguments: argparse.Namespace) -> Self:
        """Make the cohort and its arrays once."""
        params = load_params(arguments.params).model_copy(update={"report": ReportParams(writer="facts")})
        cohort = make_cohort(params, arguments)
        folder = cohort.with_name(cohort.name.replace("cohort", "prepared"))
        ingest, features = prepared(cohort, params, folder)
        train = train_params(params, arguments)
        patients = Patients.of(ingest, features, arguments.tested)
        work = folder_of(arguments, train.model_dump())
        return cls(work, cohort, ingest, features, train, patients, tuple(range(arguments.seeds)))

    @cached_property
    def prepared(self) -> evaluated.Cohort:
        """Arrays and training table."""
        return evaluated.Cohort.read(self.ingest, self.features)

    @property
    def frame(self) -> pd.DataFrame:
        """The training table, a row per patient."""
        return self.prepared.frame

    @cached_property
    def outcome(self) -> Numbers:
        """(n,) 1 poor, 0 good, of the tested patients in their order."""
        return np.array([self.patients.outcome[patient] for patient in self.patients.tested])

    @cached_property
    def counts(self) -> Numbers:
        """The resamples that all intervals share."""
        return bootstrap_counts(self.outcome.size, NUM_BOOTSTRAP, seed=7)

    def rows_of(self, patients: Iterable[str]) -> pd.DataFrame:
        """Rows of the training table in this order."""
        return self.frame.set_index("patient_id", drop=False).loc[list(patients)].reset_index(drop=True)

    def asked_about(self, patients: Iterable[str]) -> evaluated.Patients:
        """The same patients with their cases."""
        return self.prepared.patients(self.rows_of(patients))

    def scores(self, variant: Variant, ask: Ask) -> Scores:
        """Train a variant with every seed, unless that was done, and ask it."""
        frames = [self._answers(variant, seed, ask) for seed in self.seeds]
        return {name: [frame[name].to_numpy(np.float64) for frame in frames] for name in frames[0]}

    def seconds(self, variant: Variant) -> float:
        """How long all seeds took."""
        return sum(self._spent(variant, seed)["seconds"] for seed in self.seeds)

    def cpu_hours(self, variants: Iterable[Variant]) -> float:
        """Of all trainings, those of earlier starts included."""
        return sum(self._spent(v, seed)["cpu_seconds"] for v in variants for seed in self.seeds) / 3600

    def row(
        self, task: str, model: str, subset: str, scores: list[Numbers], seconds: float
    ) -> dict[str, object]:
        """AUC of one score, averaged over seeds, with its interval."""
        value, draws = mean_area(self.outcome, scores, self.counts)
        return self.fields(task, model, subset, "auc", seconds) | interval_fields(value, draws)

    def lead(
        self, task: str, models: tuple[str, str], subset: str, scores: tuple[list[Numbers], list[Numbers]]
    ) -> dict[str, object]:
        """AUC of the first less that of the second on the same resamples."""
        (value, draws), (other, other_draws) = (mean_area(self.outcome, s, self.counts) for s in scores)
        named = self.fields(task, " over ".join(models), subset, "auc_lead", 0.0)
        return named | interval_fields(value - other, draws - other_draws)

    def refuse_leaks(self, scores: Scores) -> None:
        """Refuse what knows more than the truth.

        Raises:
            LeakError: a score exceeds the AUC of the true probability by a paired 99 % interval.
        """
        truth, reason = read_truth(self.cohort, list(self.patients.tested))
        assert truth is not None, reason
        for number in range(len(self.seeds)):
            results = {name: values[min(number, len(values) - 1)] for name, values in scores.items()}
            refuse_leaks(truth, self.outcome, results, self.counts)

    def fields(self, task: str, model: str, subset: str, metric: str, seconds: float) -> dict[str, object]:
        """What every row has, but for its figure."""
        return {
            "task": task, "model": model, "subset": subset, "metric": metric,
            "num_patients": self.outcome.size, "seconds": seconds,
        }  # fmt: skip

    def _answers(self, variant: Variant, seed: int, ask: Ask) -> pd.DataFrame:
        path = self._path(variant, seed)
        if not path.exists():
            print(f"{path.stem} ...", flush=True)
            self._train(variant, seed, ask, path)
        return pd.read_parquet(path).set_index("patient_id").loc[list(self.patients.tested)]

    def _train(self, variant: Variant, seed: int, ask: Ask, path: Path) -> None:
        started, before = time.perf_counter(), time.process_time()
        params = self.train.model_copy(update={"seed": seed, **variant.changes})
        pool = self.patients.pool
        labels = len(pool) if variant.labels is None else variant.labels
        split = self.patients.split(Cell(labels, variant.name, "", seed))
        part, cache = path.with_suffix(".part"), self.work / "embeddings"
        predictor = train_fold(self.ingest, self.features, split, part, cache, params)
        validation = [patient for patient in pool if split.get(patient) == "validation"]
        asked = Asked(
            predictor=predictor,
            tested=self.asked_about(self.patients.tested),
            learned=self.rows_of(patient for patient in pool if patient in split),
            validation=self.asked_about(validation),
            left_out=self.asked_about(patient for patient in pool if patient not in split),
            seed=seed,
        )
        answers = ask(asked)
        partial = path.with_suffix(".partial")
        asked.tested.frame[["patient_id"]].assign(**answers).to_parquet(partial, index=False)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
        write_whole(path.with_suffix(".json"), json.dumps(spent))
        partial.replace(path)
        shutil.rmtree(part, ignore_errors=True)

    def _path(self, variant: Variant, seed: int) -> Path:
        return self.work / "runs" / f"{variant.name.replace(' ', '_')}-{seed}.parquet"

    def _spent(self, variant: Variant, seed: int) -> dict[str, float]:
        found: dict[str, float] = json.loads(self._path(variant, seed).with_suffix(".json").read_text())
        return found
