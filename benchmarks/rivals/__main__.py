"""Rivals side by side on real patients: same folds, same columns, same budget of CPU time.

    python -m benchmarks.rivals --json out.json [--data FOLDER] [--repeats 1] [--rivals xgboost lightgbm]

SOOP is prepared as by `benchmarks.real_patients`. XGBoost, LightGBM, CatBoost, pytorch-widedeep, fusilli and
AutoGluon-MultiModal have an environment of their own each, below build/rivals/ (requirements/NAME.txt). Per
fold they get a folder with the training patients, their outcomes, and the tested patients without. All have
the same CPU seconds per fold; patients to stop early on and to choose by come out of their own training part.

With the subset `all`, boosting is the HAIM recipe: table, facts, and embeddings of report and images. That of
the images is unsupervised: principal components of lesion volume and FLAIR planes, fitted on the training
patients of the fold. With `table_facts` a rival sees neither report nor voxels.

Willis is trained as by `benchmarks.real_patients`, and folds that lie below build/bench/real_patients are not
trained again; logistic regression, boosting and ASTRAL are those of `willis evaluate`. A rival that does not
install or dies stands in the table with its last line. Killed, the race goes on with the first (model,
subset, seed, fold) that is missing.
"""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.real_patients import WORK, RealPatients, data_folder, prepared_patients
from benchmarks.results import mean_and_interval, write_results
from benchmarks.rivals.environments import Rival
from benchmarks.rivals.handout import Material
from benchmarks.rivals.ours import astral_entry, baseline_entry, willis_entry
from benchmarks.rivals.race import SUBSETS, Race
from benchmarks.rivals.standings import Entry, rows_of
from willis.evaluation.baselines import KINDS
from willis.evaluation.folds import OURS, OutOfFold
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import TASK, known_values
from willis.models.text import TextEncoder

OUTSIDE = ("xgboost", "lightgbm", "catboost", "widedeep", "fusilli", "autogluon")
INSIDE = (OURS, *KINDS, "ASTRAL")


def main() -> None:
    """Run the race, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--data", type=Path, default=None, help="the derived SOOP set with folds.tsv")
    parser.add_argument("--work", type=Path, default=Path("build/bench/rivals"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--repeats", type=int, default=1, help="of 5 folds each")
    parser.add_argument("--seeds", type=int, default=3, help="of each rival from outside")
    parser.add_argument(
        "--budget", type=float, default=120, help="CPU seconds per rival, subset, seed and fold"
    )
    parser.add_argument("--rivals", nargs="+", choices=(*OUTSIDE, *INSIDE), default=[*OUTSIDE, *INSIDE])
    parser.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS))
    arguments = parser.parse_args()
    rows = measure(arguments)
    _show(rows)
    if arguments.json:
        write_results(arguments.json, rows, arguments)


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Prepare the patients once, let everybody predict, and compare."""
    data = data_folder(arguments.data)
    patients = prepared_patients(data, WORK.resolve(), arguments.params, arguments.repeats)
    cohort = Cohort.read(patients.ingest, patients.features)
    tested = OutOfFold.of(patients.plan, known_values(cohort.frame, TASK))
    work = arguments.work.resolve()
    encoder = TextEncoder.load(cache=work / "embeddings")
    race = Race(
        work,
        _digest(patients),
        patients.plan,
        arguments.budget,
        lambda: Material.of(cohort, patients.plan, encoder),
    )
    rivals = [Rival.named(name) for name in OUTSIDE if name in arguments.rivals]
    entries = race.entries(rivals, arguments.subsets, range(arguments.seeds), tested)
    entries += _inside(arguments.rivals, patients, tested)
    return list(rows_of(entries, tested, OURS, patients.params.train.seed))


def _inside(wanted: list[str], patients: RealPatients, tested: OutOfFold) -> Iterator[Entry]:
    if "ASTRAL" in wanted:
        yield astral_entry(patients, tested)
    yield from (baseline_entry(kind, patients, tested) for kind in KINDS if kind in wanted)
    if OURS in wanted:
        yield willis_entry(patients, WORK.resolve() / "folds")


def _digest(patients: RealPatients) -> str:
    read = hashlib.sha256((patients.ingest / "ingest.json").read_bytes())
    read.update((patients.features / "training_table.parquet").read_bytes())
    return read.hexdigest()


def _show(rows: list[dict[str, object]]) -> None:
    table = Table("model", "subset", "metric", "mean", "95 % interval", "seconds")
    for row in rows:
        words = [str(row[name]) for name in ("model", "subset", "metric")]
        table.add_row(*words, *mean_and_interval(row), f"{row['seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
