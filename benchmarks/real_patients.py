"""Poor outcome of real patients: the network beside classical rivals on the same given folds.

    python -m benchmarks.real_patients --json out.json [--data FOLDER] [--repeats 5] [--networks 3]

Imports the derived SOOP set (docs/real-patients.md), ingests it, writes reports from the measured facts,
makes the training table, and cross-validates on its `folds.tsv`: AUC is the mean over folds, intervals
resample patients. Rivals see the table and all measured facts, and need nobody for early stopping; the
network sets 15 % of its training patients aside. Killed, it goes on with the first fold that is missing.

Beside it: the network given fewer modalities; options of params.yaml (`--options`); the mean of what several
networks say, each with a seed and patients to stop early on of its own (`--networks`); and all of them on
fewer training patients (`--labels`), which shows what more patients would bring.

The outcome is the registry's Rankin score, read by others as the one at discharge, not at 90 days. A result
on this folder is a result on these patients.
"""

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.prepared import prepared
from benchmarks.results import mean_and_interval, write_results
from infra.local.source import source_of
from willis.errors import ParamsError
from willis.evaluation.baselines import KINDS
from willis.evaluation.folds import OURS, OutOfFold, predict_folds, summarise
from willis.evaluation.metrics import Numbers
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import TASK, Plan, known_values, read_folds
from willis.evaluation.results import FoldsResult, Interval
from willis.params import Params, ReportParams, load_params

WORK = Path("build/bench/real_patients")
OPTIONS: dict[str, dict[str, object]] = {"numbers piecewise": {"numbers": "piecewise"}}


@dataclass(frozen=True)
class RealPatients:
    """The patients as arrays and a training table, the parameters that made them, and who tests whom."""

    ingest: Path
    features: Path
    params: Params
    plan: Plan


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--data", type=Path, default=None, help="the derived SOOP set with folds.tsv")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--repeats", type=int, default=1, help="of 5 folds each")
    parser.add_argument("--networks", type=int, default=3, help="of which the mean is taken")
    parser.add_argument("--options", nargs="*", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--labels", type=int, nargs="*", default=[100, 200, 300], help="of a fold's patients")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    patients = prepared_patients(data_folder(arguments.data), work, arguments.params, arguments.repeats)
    rows = [row for labels in (None, *arguments.labels) for row in measure(patients, arguments, labels)]
    show(rows)
    if arguments.json:
        write_results(arguments.json, rows, arguments)


def prepared_patients(
    data: Path, work: Path, params_file: Path, repeats: int, task: str = TASK
) -> RealPatients:
    """Bring the patients to arrays and a training table once, facts as reports, and read a task's folds."""
    params = load_params(params_file).model_copy(update={"report": ReportParams(writer="facts")})
    source = source_of(f"soop:{data}", work, params)
    source.make()
    ingest, features = prepared(source.cohort, source.params, work / "prepared")
    plan = read_folds(data / "folds.tsv", task, Cohort.read(ingest, features).frame, repeats)
    return RealPatients(ingest, features, source.params, plan)


def measure(
    patients: RealPatients, arguments: argparse.Namespace, labels: int | None
) -> Iterator[dict[str, object]]:
    """Train and test the network, its options and the rivals, on so many patients of each fold or on all."""
    plan = patients.plan if labels is None else thinned(patients, labels)
    task = TASK if labels is None else f"{TASK}_{labels}_labels"
    options = {f"{OURS}, {name}": OPTIONS[name] for name in arguments.options}
    for name, change in ({OURS: dict[str, object]()} | options).items():
        started, given = time.perf_counter(), replace(patients, plan=plan, params=changed(patients, change))
        every = [predicted(given, arguments.work.resolve(), seed) for seed in range(arguments.networks)]
        tested, first = every[0]
        asked = {name: first if name == OURS else beside_rivals(first[OURS], first)}
        if len(every) > 1:
            mean = np.mean([said[OURS] for _, said in every], axis=0)
            asked[f"{name}, mean of {len(every)}"] = beside_rivals(mean, first)
        seconds = time.perf_counter() - started
        for ours, said in asked.items():
            found = summarise(tested.outcome, said, tested.member, plan, patients.params.train.seed)
            yield from rows_of(found, ours, task, seconds)


def beside_rivals(ours: Numbers, said: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """Predictions in the place of the network's, and the rivals'."""
    return {OURS: ours} | {kind: said[kind] for kind in KINDS}


def thinned(patients: RealPatients, labels: int) -> Plan:
    """The same tested patients, so many to learn from in each fold; larger draws hold the smaller ones."""
    outcome = known_values(Cohort.read(patients.ingest, patients.features).frame, TASK)
    folds = []
    for fold in patients.plan.folds:
        order = np.random.default_rng([fold.repeat, fold.number]).permutation(len(fold.train))
        drawn = tuple(fold.train[k] for k in order[:labels])
        if len(drawn) < labels or len({outcome[patient] for patient in drawn}) < 2:
            raise ParamsError(
                f"--labels {labels}: fold {fold.name} has {len(fold.train)} patients to draw from"
            )
        folds.append(replace(fold, train=drawn))
    return replace(patients.plan, folds=tuple(folds))


def predicted(patients: RealPatients, work: Path, seed: int) -> tuple[OutOfFold, dict[str, Numbers]]:
    """What every model says of the patients whom its fold tests, going on from the folds that are kept."""
    train = patients.params.train.model_copy(update={"seed": patients.params.train.seed + seed})
    return predict_folds(
        patients.ingest, patients.features, patients.plan, work / "folds", train, patients.params.pretrain
    )


def changed(patients: RealPatients, change: Mapping[str, object]) -> Params:
    """The parameters with an option of the section `train`."""
    train = patients.params.train.model_copy(update=change)
    return patients.params.model_copy(update={"train": train})


def rows_of(found: FoldsResult, ours: str, task: str, seconds: float) -> Iterator[dict[str, object]]:
    """A row per model, rivals beside the default network alone, and one per paired lead of `ours`."""
    common = {"task": task, "subset": "all", "num_patients": found.num_patients, "seconds": seconds}
    for model in found.models:
        if model.name == OURS:
            yield common | {"model": ours, "metric": "auc"} | _fields(model.auc)
        elif ours == OURS:
            name, _, subset = model.name.partition(": ")
            yield common | {"model": name, "subset": subset or "all", "metric": "auc"} | _fields(model.auc)
    for lead in found.leads:
        yield common | {"model": f"{ours} over {lead.over}", "metric": "auc_lead"} | _fields(lead.auc)


def _fields(it: Interval) -> dict[str, float]:
    return {"mean": it.value, "low": it.low, "high": it.high}


def data_folder(given: Path | None) -> Path:
    """Return the folder of the command line, or the one beside the project."""
    return given or Path(os.environ.get("WILLIS_DATA_DIR", "../shared/data")) / "soop"


def show(rows: list[dict[str, object]]) -> None:
    """Print the rows as a table."""
    table = Table("model", "metric", "mean", "95 % interval", "patients")
    for row in rows:
        table.add_row(
            str(row["model"]), str(row["metric"]), *mean_and_interval(row), str(row["num_patients"])
        )
    Console().print(table)


if __name__ == "__main__":
    main()
