"""NIHSS of real patients from image, report and age: the network beside support vectors and boosting.

    python -m benchmarks.nihss --json out.json [--data FOLDER] [--repeats 3]

The patients, arrays and training table are those of benchmarks/real_patients.py; the folds are the task
`nihss` of its `folds.tsv`, ten per repeat. Published on the source of these data, from age, lesion volume and
arterial regions: R .514 and .550. Killed, it goes on with the first fold that is missing.
"""

import argparse
import time
from pathlib import Path

from benchmarks.real_patients import WORK, data_folder, prepared_patients, show
from benchmarks.results import write_results
from willis.evaluation.plans import NIHSS
from willis.evaluation.results import SeverityResult
from willis.evaluation.severity import evaluate_severity


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--data", type=Path, default=None, help="the derived SOOP set with folds.tsv")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--repeats", type=int, default=1, help="of 10 folds each")
    arguments = parser.parse_args()
    started = time.perf_counter()
    data, work = data_folder(arguments.data), arguments.work.resolve()
    patients = prepared_patients(data, work, arguments.params, arguments.repeats, NIHSS)
    found = evaluate_severity(
        patients.ingest, patients.features, patients.plan, work / "nihss", patients.params.train
    )
    rows = rows_of(found, time.perf_counter() - started)
    show(rows)
    if arguments.json:
        write_results(arguments.json, rows, arguments)


def rows_of(found: SeverityResult, seconds: float) -> list[dict[str, object]]:
    """One row per model, and one per paired lead of the network."""
    common = {"task": NIHSS, "subset": "image, report and age", "num_patients": found.num_patients}
    values = [(model.name, "r", model.r) for model in found.models]
    leads = [(f"willis over {lead.over}", "r_lead", lead.r) for lead in found.leads]
    return [
        common
        | {
            "model": name,
            "metric": metric,
            "mean": it.value,
            "low": it.low,
            "high": it.high,
            "seconds": seconds,
        }
        for name, metric, it in (*values, *leads)
    ]


if __name__ == "__main__":
    main()
