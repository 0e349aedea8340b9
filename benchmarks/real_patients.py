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
import json
import os
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.prepared import prepared
from infra.local.source import source_of
from willis.evaluation.folds import TASK, evaluate_folds
from willis.evaluation.results import FoldsResult
from willis.params import ReportParams, load_params


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--data", type=Path, default=None, help="the derived SOOP set with folds.tsv")
    parser.add_argument("--work", type=Path, default=Path("build/bench/real_patients"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--repeats", type=int, default=1, help="of 5 folds each")
    arguments = parser.parse_args()
    started = time.perf_counter()
    found = measure(_data(arguments.data), arguments.work.resolve(), arguments.params, arguments.repeats)
    rows = rows_of(found, time.perf_counter() - started)
    _show(rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(data: Path, work: Path, params_file: Path, repeats: int) -> FoldsResult:
    """Bring the patients to arrays and a training table once, facts as reports, and cross-validate."""
    params = load_params(params_file).model_copy(update={"report": ReportParams(writer="facts")})
    source = source_of(f"soop:{data}", work, params)
    source.make()
    ingest, features = prepared(source.cohort, source.params, work / "prepared")
    return evaluate_folds(
        ingest, features, data / "folds.tsv", TASK, work / "folds",
        source.params.train, repeats=repeats, pretrain=source.params.pretrain,
    )  # fmt: skip


def rows_of(found: FoldsResult, seconds: float) -> list[dict[str, object]]:
    """One row per model, and one per paired lead of the network."""
    common = {"task": found.task, "subset": "all", "num_patients": found.num_patients, "seconds": seconds}
    areas = [(model.name, "auc", model.auc) for model in found.models]
    leads = [(f"willis over {lead.over}", "auc_lead", lead.auc) for lead in found.leads]
    return [
        common | {"model": name, "metric": metric, "mean": it.value, "low": it.low, "high": it.high}
        for name, metric, it in (*areas, *leads)
    ]


def _data(given: Path | None) -> Path:
    return given or Path(os.environ.get("WILLIS_DATA_DIR", "../shared/data")) / "soop"


def _show(rows: list[dict[str, object]]) -> None:
    table = Table("model", "metric", "mean", "95 % interval", "patients")
    for row in rows:
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(
            str(row["model"]), str(row["metric"]), f"{row['mean']:.3f}", interval, str(row["num_patients"])
        )
    Console().print(table)


if __name__ == "__main__":
    main()
