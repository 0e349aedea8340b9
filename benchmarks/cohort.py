"""Cohort generation: CPU seconds per synthetic patient at 88 x 104 x 40, where they go, and start-up.

    python -m benchmarks.cohort --json out.json

One process, one thread, CPU time and not wall time, so that a busy machine blurs it less. Target: 0.5 CPU-s
per patient. The ceilings of both presets are computed and timed apart, since they cost the same for any
number of patients: by quadrature and by the boosted oracle, and how far the two are apart at most.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.results import figure_rows, write_results
from willis.cohort.ceiling import NUM_SCORED, Ceilings, ceilings
from willis.cohort.lesions import load_library, seeds
from willis.cohort.outcome import Preset
from willis.cohort.patients import each
from willis.cohort.physics import SCANNERS
from willis.cohort.render import render
from willis.cohort.synthetic import Job, draw_patients, make_patient
from willis.params import CohortParams

TARGET_CPU_S = 0.5
MODALITY_SETS = ("image", "table", "full", "additive")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--without-ceilings", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.patients)
    start = time.process_time()
    best = [] if arguments.without_ceilings else [ceilings(preset) for preset in get_args(Preset)]
    if best:
        figures["ceilings_cpu_s_per_preset"] = (time.process_time() - start) / len(best)
    _show(figures, best)
    if arguments.json:
        rows = figure_rows("cohort", "synthesis", figures, arguments.patients)
        for item in best:
            found = item.model_dump(exclude={"preset"})
            rows += figure_rows(f"ceilings_{item.preset}", "the truth", found, NUM_SCORED)
        write_results(arguments.json, rows, arguments)


def measure(num_patients: int) -> dict[str, float]:
    """Time every part once, in the order in which a run meets them."""
    started = _cpu(seeds)
    library = _cpu(load_library)
    params = CohortParams(num_patients=num_patients, seed=1)
    start = time.process_time()
    patients = draw_patients(params, "benchmark")
    drawing = time.process_time() - start
    jobs = [
        (f"sub-{number:04d}", image, seen.scanner.name)
        for number, (image, seen) in enumerate(zip(each(patients.image), patients.visits, strict=True))
    ]
    start = time.process_time()
    for number, (_, image, scanner) in enumerate(jobs):
        render(np.random.default_rng([1, number]), image, SCANNERS[scanner])
    rendering = (time.process_time() - start) / num_patients
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for number, (patient_id, image, scanner) in enumerate(jobs):
            make_patient(Job(Path(folder), patient_id, (1, number), image, scanner))
        whole = (time.process_time() - start) / num_patients
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.nii.gz"))
    return {
        "num_patients": num_patients,
        "cpu_s_per_patient": whole,
        "target_cpu_s_per_patient": TARGET_CPU_S,
        "reached": whole <= TARGET_CPU_S,
        "rendering_cpu_s": rendering,
        "writing_cpu_s": whole - rendering,
        "drawing_cpu_s_per_patient": drawing / num_patients,
        "anatomy_cpu_s_per_process": started,
        "library_cpu_s_once": library,
        "megabytes_per_patient": size / num_patients / 1e6,
    }


def _show(figures: dict[str, float], best: Sequence[Ceilings]) -> None:
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if not best:
        return
    table = Table("preset", "way", *MODALITY_SETS, "apart")
    for item in best:
        exact = (f"{getattr(item, name):.4f}" for name in MODALITY_SETS)
        boosted = (f"{getattr(item, f'oracle_{name}'):.4f}" for name in MODALITY_SETS)
        table.add_row(item.preset, "quadrature", *exact, f"{item.agreement:.4f}")
        table.add_row("", "oracle", *boosted, "")
    Console().print(table)


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
