"""Entries that need no environment: Willis, its baselines, and ASTRAL, by the code that evaluation uses."""

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks.real_patients import RealPatients, predicted
from benchmarks.rivals.standings import Entry
from willis.errors import CohortError
from willis.evaluation.baselines import Kind, fact_columns, fit_baseline, table_columns
from willis.evaluation.folds import OURS, OutOfFold
from willis.evaluation.metrics import Numbers
from willis.evaluation.patients import Cohort
from willis.evaluation.scores import score


def willis_entry(patients: RealPatients, out: Path) -> Entry:
    """The network as `benchmarks.real_patients` trains and tests it, going on from `out`."""
    started = time.perf_counter()
    _, said = predicted(patients, out, models=(OURS,))
    return Entry(OURS, "all", (said[OURS],), time.perf_counter() - started)


def baseline_entry(kind: Kind, patients: RealPatients, tested: OutOfFold) -> Entry:
    """A baseline on table and facts; needs nobody for early stopping."""

    def predict(train: pd.DataFrame, test: pd.DataFrame) -> Numbers:
        columns = (*table_columns(train), *fact_columns(train))
        return fit_baseline(kind, kind, train, columns, patients.params.train.seed).predict(test)

    return _fold_by_fold(kind, "table_facts", predict, patients, tested)


def astral_entry(patients: RealPatients, tested: OutOfFold) -> Entry:
    """ASTRAL's points, unknown items filled from each fold's training patients; or why there are none."""

    def predict(train: pd.DataFrame, test: pd.DataFrame) -> Numbers:
        found = score("ASTRAL", train, test)
        if found.points is None:
            raise CohortError(found.reason)
        return found.points

    return _fold_by_fold("ASTRAL", "table", predict, patients, tested)


def _fold_by_fold(
    model: str,
    subset: str,
    predict: Callable[[pd.DataFrame, pd.DataFrame], Numbers],
    patients: RealPatients,
    tested: OutOfFold,
) -> Entry:
    frame = Cohort.read(patients.ingest, patients.features).frame
    started, predicted = time.perf_counter(), {}
    for fold in patients.plan.folds:
        train, test = (frame[frame["patient_id"].isin(part)] for part in (fold.train, fold.test))
        try:
            predicted[fold] = test[["patient_id"]].assign(p=predict(train, test))
        except CohortError as error:
            return Entry(model, subset, (), 0.0, str(error))
    return Entry(model, subset, (tested.gathered(predicted),), time.perf_counter() - started)
