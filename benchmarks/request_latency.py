"""Latency of a request with three volumes against bare preprocessing and forward pass, in one run.

    python -m benchmarks.request_latency --json out.json

The endpoint runs as deployed (Ray Serve behind HAProxy, SQLite log, one replica of each kind). The bare side
reads the same three gzipped NIfTI files (88 x 104 x 40, in MNI space), prepares the study, renders the report
and asks the same bundle, in this process, with one torch thread as in a replica. The two take turns, so that
a busy machine slows both; CPU time, which no neighbour changes, stands beside the clock (replicas and HAProxy
on the one side, this process on the other). The network is untrained, of the default size: its cost is that
of a trained one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import figure_rows, write_results
from infra.local.processes import free_port
from infra.local.ray_head import ray_head
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
        rows = figure_rows("request_latency", "willis", figures, arguments.requests)
        write_results(arguments.json, rows, arguments)


def measure(root: Path, num_requests: int, within_s: float) -> dict[str, float]:
    """Deploy a bundle and let the two sides take turns; all figures in milliseconds."""
    study = volumes(root / "study", FULL)
    with ray_head(root / "ray.log", drain_s=5) as head:
        bind = f"127.0.0.1:{free_port()}"
        settings = test_settings(
            root, ray_dashboard_url=head.dashboard_url, serve_bind=bind, endpoint_url=f"http://{bind}"
        )
        bundle = small_bundle(root / "bundle", FULL, width=WIDTH)
        publish(bundle, settings)
        deploy(None, DeployParams(num_replicas=1, healthy_within_s=within_s), settings, FULL, ReportParams())
        bare = bare_call(bundle.folder, settings, study)
        with httpx.Client(base_url=settings.endpoint_url, timeout=60) as client:
            servers = server_processes(head.dashboard_url, settings)
            return take_turns(bare, request_call(client, study), num_requests, servers)


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


def server_processes(dashboard_url: str, settings: Settings) -> list[psutil.Process]:
    """The replicas, and the HAProxy in front of them."""
    details = httpx.get(f"{dashboard_url}/api/serve/applications/", timeout=30).json()
    deployments = details["applications"]["willis"]["deployments"].values()
    replicas = {replica["pid"] for deployment in deployments for replica in deployment["replicas"]}
    port = int(settings.serve_bind.rpartition(":")[2])
    ingress = {item.pid for item in psutil.net_connections("tcp") if item.laddr and item.laddr.port == port}
    names = {pid: psutil.Process(pid).name() for pid in ingress if pid}
    return [psutil.Process(pid) for pid in replicas | {p for p, name in names.items() if name == "haproxy"}]


def take_turns(
    bare: Callable[[], None], request: Callable[[], None], num: int, servers: list[psutil.Process]
) -> dict[str, float]:
    """Time both, one after the other, `num` times."""
    for _ in range(NUM_WARM_UP):
        bare()
        request()
    before = _cpu_ms(servers)
    pairs = [(*_milliseconds(bare), *_milliseconds(request)) for _ in track(range(num), "measuring")]
    server_cpu = (_cpu_ms(servers) - before) / num
    alone, bare_cpu, served, client_cpu = (list(column) for column in zip(*pairs, strict=True))
    overheads = [one - other for other, one in zip(alone, served, strict=True)]
    return {
        "num_requests": num,
        "bare_p50_ms": statistics.median(alone),
        "bare_p95_ms": _percentile(alone, 95),
        "request_p50_ms": statistics.median(served),
        "request_p95_ms": _percentile(served, 95),
        "overhead_p50_ms": statistics.median(overheads),
        "ratio_p50": statistics.median(served) / statistics.median(alone),
        "bare_cpu_ms": statistics.median(bare_cpu),
        "server_cpu_ms": server_cpu,
        "client_cpu_ms": statistics.median(client_cpu),
    }


def _milliseconds(call: Callable[[], None]) -> tuple[float, float]:
    """Time one call by the clock and by this process's CPU."""
    started, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - started) * 1000, (time.process_time() - cpu) * 1000


def _cpu_ms(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(item.user + item.system for item in times) * 1000


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def _show(figures: dict[str, float]) -> None:
    table = Table(title="A request with three volumes, milliseconds")
    for heading in ("", "p50", "p95", "CPU"):
        table.add_column(heading)
    rows = (
        ("bare", "bare_cpu_ms", "preprocessing + forward"),
        ("request", "server_cpu_ms", "request over HTTP"),
    )
    for name, cpu, label in rows:
        table.add_row(label, *(f"{figures[key]:.0f}" for key in (f"{name}_p50_ms", f"{name}_p95_ms", cpu)))
    table.add_row("difference", f"{figures['overhead_p50_ms']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
