"""Poor outcome of real patients: the network beside classical rivals on the same given folds.

    python -m benchmarks.real_patients --json out.json [--data FOLDER] [--repeats 5]

Imports the derived SOOP set (docs/real-patients.md), ingests it, writes reports from the measured facts,
makes the training table, and cross-validates on its `folds.tsv`: AUC is the mean over folds, intervals
resample patients. Rivals see the table and all measured facts, and need nobody for early stopping; the
network sets 15 % of its training patients aside. Killed, it goes on with the first fold that is missing.

The outcome is the registry's Rankin score, read by others as the one at discharge, not at 90 days. A result
on this folder is a result on these patients.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.prepared import prepared
from benchmarks.results import mean_and_interval, write_results
from infra.local.source import source_of
from willis.evaluation.folds import evaluate_folds
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import TASK, Plan, read_folds
from willis.evaluation.results import FoldsResult
from willis.params import Params, ReportParams, load_params

WORK = Path("build/bench/real_patients")


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
    arguments = parser.parse_args()
    started = time.perf_counter()
    work = arguments.work.resolve()
    patients = prepared_patients(data_folder(arguments.data), work, arguments.params, arguments.repeats)
    found = cross_validated(patients, work / "folds")
    rows = rows_of(found, time.perf_counter() - started)
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


def cross_validated(patients: RealPatients, out: Path) -> FoldsResult:
    """Train and test the network and the classical rivals, fold by fold, going on from `out`."""
    train, pretrain = patients.params.train, patients.params.pretrain
    return evaluate_folds(patients.ingest, patients.features, patients.plan, out, train, pretrain=pretrain)


def rows_of(found: FoldsResult, seconds: float) -> list[dict[str, object]]:
    """One row per model, and one per paired lead of the network."""
    common = {"task": found.task, "subset": "all", "num_patients": found.num_patients, "seconds": seconds}
    areas = [(model.name, "auc", model.auc) for model in found.models]
    leads = [(f"willis over {lead.over}", "auc_lead", lead.auc) for lead in found.leads]
    return [
        common | {"model": name, "metric": metric, "mean": it.value, "low": it.low, "high": it.high}
        for name, metric, it in (*areas, *leads)
    ]


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
