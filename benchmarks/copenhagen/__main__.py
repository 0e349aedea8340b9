"""Mortality after 1, 3 and 5 years in the Copenhagen Stroke Study, from the table alone.

    python -m benchmarks.copenhagen --json out.json [--data cost.rda] [--repeats 10] [--networks 3]

The network with the table as its only modality, logistic regression, gradient boosting and a random survival
forest learn and are tested on the same stratified folds, five per repeat. `willis` is one network per fold,
as cross-validation trains it; `willis_mean_of_3` is the mean of what three say, each with a seed and patients
to stop early on of its own. AUC is the mean over folds and repeats, that of `willis` over its networks too;
intervals resample patients, and leads are paired.

The patients are those of Debian's package r-cran-pec, obtained below build/ where `apt-get` can; otherwise
--data names its `cost.rda`, or the same table as CSV. The survival forest and what reads R's data have an
environment of their own below build/rivals/. Killed, it goes on with the first (task, model, seed, repeat,
fold) that is missing.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.copenhagen.contest import Contest
from benchmarks.copenhagen.patients import Task, cost_file, read_patients
from benchmarks.results import mean_and_interval, write_results
from willis.errors import CohortError
from willis.evaluation.plans import dealt_folds
from willis.params import load_params

YEARS = (1, 3, 5)
NUM_FOLDS = 5


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--data", type=Path, help="cost.rda of the R package pec, or the same table as CSV")
    parser.add_argument("--work", type=Path, default=Path("build/bench/copenhagen"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--repeats", type=int, default=10, help=f"of {NUM_FOLDS} folds each")
    parser.add_argument("--networks", type=int, default=3, help="per fold, to be averaged")
    parser.add_argument("--seed", type=int, default=7, help="of folds, networks and rivals")
    arguments = parser.parse_args()
    try:
        rows = measure(arguments)
    except CohortError as error:
        parser.exit(1, f"{error}\n")
    _show(rows)
    if arguments.json:
        write_results(arguments.json, rows, arguments)


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Obtain the patients, deal the folds of each task, let everybody predict, and compare."""
    work = arguments.work.resolve()
    patients = read_patients(cost_file(arguments.data, work))
    tasks = [Task.of(patients, years) for years in YEARS]
    for task in tasks:
        died = int(task.frame["poor_outcome"].sum())
        print(f"{task.name}: {len(task.frame)} patients, {died} died; {task.num_censored} censored before")
    plans = {task: dealt_folds(task.frame, NUM_FOLDS, arguments.repeats, arguments.seed) for task in tasks}
    params = load_params(arguments.params).train.model_copy(update={"seed": arguments.seed})
    return list(Contest(work, plans, params, arguments.networks).rows())


def _show(rows: list[dict[str, object]]) -> None:
    table = Table("task", "model", "metric", "mean", "95 % interval", "patients", "seconds")
    for row in rows:
        words = [str(row[name]) for name in ("task", "model", "metric")]
        table.add_row(*words, *mean_and_interval(row), str(row["num_patients"]), f"{row['seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
