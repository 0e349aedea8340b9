"""Poor outcome of real patients: the network beside classical rivals on the same given folds.

    python -m benchmarks.real_patients --json out.json [--data FOLDER] [--repeats 5] [--networks 3]

Imports the derived SOOP set (docs/real-patients.md), ingests it, writes reports from the measured facts,
makes the training table, and cross-validates on its `folds.tsv`: AUC is the mean over folds, intervals
resample patients. Rivals see the table and all measured facts, and need nobody for early stopping; the
network sets 15 % of its training patients aside. Killed, it goes on with the first fold that is missing.

With several networks (`--networks`), each has a seed and patients to stop early on of its own: their AUCs are
averaged, and beside that stands the AUC of the mean of what they say. Further: the first of them given fewer
modalities; options of params.yaml (`--options`); and everything on fewer training patients (`--labels`), for
what more patients would bring. ECE is of the probabilities as each model gives them, beside `perfect 95`:
what a perfectly calibrated model of these very probabilities stays below in 95 % of samples.

The outcome is the registry's Rankin score, read by others as the one at discharge, not at 90 days. A result
on this folder is a result on these patients.
"""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.calibration import calibration_error
from benchmarks.prepared import prepared
from benchmarks.results import mean_and_interval, write_results
from benchmarks.rivals.standings import Entry, averaged, rows_of
from infra.local.source import source_of
from willis.errors import ParamsError
from willis.evaluation.baselines import KINDS
from willis.evaluation.folds import MODELS, OURS, Model, OutOfFold, predict_folds
from willis.evaluation.metrics import Numbers
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import TASK, Plan, known_values, read_folds
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
    out, seed = arguments.work.resolve() / "folds", patients.params.train.seed
    given = replace(patients, plan=plan)
    tested, said = predicted(given, out)
    others = [Entry(name, "all", (found,), 0.0) for name, found in said.items() if name != OURS]
    rivals = [entry for entry in others if entry.model in KINDS]
    options = {f"{OURS}, {name}": OPTIONS[name] for name in arguments.options}
    for name, change in ({OURS: dict[str, object]()} | options).items():
        ours = networks(given, out, name, change, arguments.networks)
        beside = others if name == OURS else rivals
        means = [averaged(ours)] if arguments.networks > 1 else []
        yield from rows_of([ours, *beside], tested, name, seed, task, rivals_too=name == OURS)
        for mean in means:
            yield from rows_of([mean, *rivals], tested, mean.model, seed, task, rivals_too=False)
        for entry in (ours, *means, *(rivals if name == OURS else ())):
            yield calibration_row(entry, tested, task)


def networks(patients: RealPatients, out: Path, name: str, change: Mapping[str, object], num: int) -> Entry:
    """What so many networks with an option say, each with a seed and patients to stop early on of its own."""
    started, train = time.perf_counter(), patients.params.train
    said = []
    for seed in range(num):
        own = train.model_copy(update={**change, "seed": train.seed + seed})
        asked = replace(patients, params=patients.params.model_copy(update={"train": own}))
        said.append(predicted(asked, out, models=(OURS,))[1][OURS])
    return Entry(name, "all", tuple(said), time.perf_counter() - started)


def calibration_row(entry: Entry, tested: OutOfFold, task: str) -> dict[str, object]:
    """ECE of what an entry says out of fold, the mean over seeds and repeats, beside a perfect model's."""
    said = [(tested.outcome, p) for repeats in entry.predictions for p in repeats]
    common = {"task": task, "model": entry.model, "subset": entry.subset, "metric": "ece", "seconds": 0.0}
    return common | {"num_patients": tested.outcome.size} | calibration_error(said)


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


def predicted(
    patients: RealPatients, out: Path, models: Sequence[Model] = MODELS
) -> tuple[OutOfFold, dict[str, Numbers]]:
    """What some models say of the patients whom each fold tests, going on from the folds kept in `out`."""
    train, pretrain = patients.params.train, patients.params.pretrain
    return predict_folds(
        patients.ingest, patients.features, patients.plan, out, train, pretrain, models=models
    )


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
