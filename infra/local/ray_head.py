"""One Ray node on loopback, started and stopped by whoever owns the machine."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import free_port, start, stop
from willis.errors import RayError

REPOSITORY = Path(__file__).resolve().parents[2]
START_WITHIN_S = 90
ATTEMPTS = 2
LOG_TAIL_LINES = 20
OBJECT_STORE_BYTES = 300_000_000


@dataclass(frozen=True)
class RayHead:
    """Where a running node answers."""

    address: str
    dashboard_url: str
    process: subprocess.Popen[bytes]


def environment(extra: dict[str, str]) -> dict[str, str]:
    """The environment of the node: no tokens on loopback, HAProxy before Serve, nothing reported home."""
    return {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        **extra,
    }


@contextlib.contextmanager
def ray_head(log: Path, extra: dict[str, str] | None = None, num_cpus: int = 4) -> Iterator[RayHead]:
    """Start a node, wait until it answers, and stop it at the end.

    Args:
        log: where its output goes.
        extra: environment variables for it and its workers.
        num_cpus: logical CPUs; replicas and workers share the real ones.

    Raises:
        RayError: it did not come up in two attempts; the message ends with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="willis-ray-", ignore_cleanup_errors=True) as scratch:
        head = _started(log, environment(extra or {}), num_cpus, Path(scratch))
        try:
            yield head
        finally:
            stop(head.process)


def _started(log: Path, variables: dict[str, str], num_cpus: int, scratch: Path) -> RayHead:
    for _ in range(ATTEMPTS):
        port, dashboard = free_port(), free_port()
        process = start(_command(port, dashboard, num_cpus, scratch), log, variables)
        head = RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", process)
        if _answers(head):
            return head
        stop(process)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise RayError(
        f"Ray did not come up within {START_WITHIN_S} s, twice; is the machine loaded? {log} ends:\n{tail}"
    )


def _command(port: int, dashboard: int, num_cpus: int, scratch: Path) -> list[str]:
    return [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={scratch}",
        "--disable-usage-stats",
    ]


def _answers(head: RayHead) -> bool:
    import httpx

    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and head.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{head.dashboard_url}/api/serve/applications/", timeout=5).is_success:
                return True
        time.sleep(0.5)
    return False
