"""Latency of a request with three volumes against bare preprocessing and forward pass, in one run.

    python -m benchmarks.request_latency --json out.json

The endpoint runs as deployed (Ray Serve behind HAProxy, SQLite log, one replica of each kind). The bare side
reads the same three gzipped NIfTI files (88 x 104 x 40, in MNI space), prepares the study, renders the report
and asks the same bundle, in this process, with one torch thread as in a replica. The two take turns, so that
a busy machine slows both. The network is untrained, of the default size: its cost is that of a trained one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from infra.local.processes import free_port
from infra.local.ray_head import ray_head
from serving.environment import serve_environment
from tests.served import CLINICAL, FULL, publish, small_bundle, test_settings, volumes
from willis.casework import Caseworker, ClinicalRow
from willis.inference import Predictor
from willis.params import DeployParams, ReportParams
from willis.settings import Settings
from willis.steps.deploy import deploy

WIDTH = 128
NUM_WARM_UP = 5


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--seconds-to-start", type=float, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wb") as folder:
        figures = measure(Path(folder), arguments.requests, arguments.seconds_to_start)
    _show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(root: Path, num_requests: int, within_s: float) -> dict[str, float]:
    """Deploy a bundle and let the two sides take turns; all figures in milliseconds."""
    study = volumes(root / "study", FULL)
    with ray_head(root / "ray.log", serve_environment(root, drain_s=5)) as head:
        bind = f"127.0.0.1:{free_port()}"
        settings = test_settings(
            root, ray_dashboard_url=head.dashboard_url, serve_bind=bind, endpoint_url=f"http://{bind}"
        )
        bundle = small_bundle(root / "bundle", FULL, width=WIDTH)
        publish(bundle, settings)
        deploy(None, DeployParams(num_replicas=1, healthy_within_s=within_s), settings, FULL, ReportParams())
        bare = bare_call(bundle.folder, settings, study)
        with httpx.Client(base_url=settings.endpoint_url, timeout=60) as client:
            return take_turns(bare, request_call(client, study), num_requests)


def bare_call(bundle: Path, settings: Settings, study: dict[str, Path]) -> Callable[[], None]:
    """Files to prediction without any server."""
    import torch

    torch.set_num_threads(1)
    worker = Caseworker(FULL, ReportParams(), settings)
    worker.warm_up()
    predictor, row = Predictor.from_bundle(bundle), ClinicalRow.model_validate(CLINICAL)

    def call() -> None:
        prepared = worker.prepare(study, "mni152")
        case = worker.assemble("bare", prepared, row, worker.write_report(prepared)).case
        predictor.predict([case])

    return call


def request_call(client: httpx.Client, study: dict[str, Path]) -> Callable[[], None]:
    """The same as a caller sees it."""
    form = {"request": json.dumps({"clinical": CLINICAL, "space": "mni152"})}

    def call() -> None:
        files = {name: (path.name, path.read_bytes()) for name, path in study.items()}
        client.post("/v1/predictions", data=form, files=files).raise_for_status()

    return call


def take_turns(bare: Callable[[], None], request: Callable[[], None], num: int) -> dict[str, float]:
    """Time both, one after the other, `num` times."""
    for _ in range(NUM_WARM_UP):
        bare()
        request()
    pairs = [(_milliseconds(bare), _milliseconds(request)) for _ in track(range(num), "measuring")]
    alone, served = ([pair[side] for pair in pairs] for side in (0, 1))
    overheads = [one - other for other, one in pairs]
    return {
        "num_requests": num,
        "bare_p50_ms": statistics.median(alone),
        "bare_p95_ms": _percentile(alone, 95),
        "request_p50_ms": statistics.median(served),
        "request_p95_ms": _percentile(served, 95),
        "overhead_p50_ms": statistics.median(overheads),
        "ratio_p50": statistics.median(served) / statistics.median(alone),
    }


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def _show(figures: dict[str, float]) -> None:
    table = Table(title="A request with three volumes, milliseconds")
    for heading in ("", "p50", "p95"):
        table.add_column(heading)
    for name, label in (("bare", "preprocessing + forward"), ("request", "request over HTTP")):
        table.add_row(label, f"{figures[f'{name}_p50_ms']:.0f}", f"{figures[f'{name}_p95_ms']:.0f}")
    table.add_row("difference", f"{figures['overhead_p50_ms']:.0f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
