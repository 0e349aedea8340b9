"""One Ray node on loopback, started and stopped by whoever owns the machine."""

import contextlib
import os
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import start, stop
from serving.environment import free_ports, serve_environment
from willis.errors import RayError

START_WITHIN_S = 240
ATTEMPTS = 2
LOG_TAIL_LINES = 20
OBJECT_STORE_BYTES = 300_000_000
PORTS = (
    "port", "dashboard-port", "node-manager-port", "object-manager-port", "ray-client-server-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
    "metrics-export-port",
)  # fmt: skip
# On one machine nobody scrapes these and no node is reclaimed, and what they cost is taken from training: two
# busy workers on two cores lost a tenth of their pace to a Ray that did nothing else.
SPARING = {
    "RAY_event_stats": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
VARIABLES = SPARING | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_agent_register_timeout_ms": "120000",  # a loaded machine needs more than Ray's own 10 s
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class RayHead:
    """Where a running node answers.

    Attributes:
        address: for `ray.init` and WILLIS_RAY_ADDRESS.
        dashboard_url: for WILLIS_RAY_DASHBOARD_URL.
        token: what callers must show; None where everybody on the machine is trusted.
    """

    address: str
    dashboard_url: str
    token: str | None
    process: subprocess.Popen[bytes]

    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to use this node."""
        found = {
            "WILLIS_RAY_ADDRESS": self.address,
            "WILLIS_RAY_DASHBOARD_URL": self.dashboard_url,
            **SPARING,
            **auth_variables(self.token),
        }
        return found | ({"WILLIS_RAY_AUTH_TOKEN": self.token} if self.token else {})


def auth_variables(token: str | None) -> dict[str, str]:
    """Ray's own switches: some of its ports listen on every interface; a token keeps others out."""
    if token is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@contextlib.contextmanager
def ray_head(log: Path, num_cpus: int = 4, drain_s: int = 30, token: str | None = None) -> Iterator[RayHead]:
    """Start a node, wait until it is alive, and stop it at the end.

    Args:
        log: where its output goes.
        num_cpus: logical CPUs; replicas and workers share the real ones.
        drain_s: how long a replica that is replaced goes on answering.
        token: what callers must show (at least 32 random characters); None asks for nothing.

    Raises:
        RayError: it did not come up in two attempts; the message ends with the end of its log.
    """
    # Below /tmp, because a Unix socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="wr", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        head = _started(log, num_cpus, drain_s, token, Path(scratch))
        try:
            yield head
        finally:
            stop(head.process)


def _started(log: Path, num_cpus: int, drain_s: int, token: str | None, scratch: Path) -> RayHead:
    for attempt in range(ATTEMPTS):
        folder = scratch / str(attempt)
        folder.mkdir()
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        environment = os.environ | serve_environment(folder, drain_s) | VARIABLES | auth_variables(token)
        process = start(_command(ports, num_cpus, folder), log, environment)
        address, dashboard = (f"127.0.0.1:{ports[name]}" for name in ("port", "dashboard-port"))
        head = RayHead(address, f"http://{dashboard}", token, process)
        if _comes_up(head):
            return head
        ended = process.poll()
        stop(process)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    fate = (
        f"did not answer within {START_WITHIN_S} s; is the machine loaded?"
        if ended is None
        else f"ended with exit code {ended} before it answered;"
    )
    raise RayError(f"Ray did not come up in {ATTEMPTS} attempts: it {fate} {log} ends:\n{tail}")


def _command(ports: dict[str, int], num_cpus: int, folder: Path) -> list[str]:
    return [
        str(Path(sysconfig.get_path("scripts")) / "ray"), "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        f"--num-cpus={num_cpus}", "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={folder}",
        "--disable-usage-stats", "--log-color=false",
        *[f"--{name}={port}" for name, port in ports.items()],
    ]  # fmt: skip


def _comes_up(head: RayHead) -> bool:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and head.process.poll() is None:
        if _node_is_alive(head):
            return True
        time.sleep(0.3)
    return False


def _node_is_alive(head: RayHead) -> bool:
    """The dashboard answers well before the node does, and goes on answering when the node died."""
    import httpx

    try:
        headers = {"Authorization": f"Bearer {head.token}"} if head.token else {}
        answer = httpx.get(
            f"{head.dashboard_url}/nodes", params={"view": "summary"}, headers=headers, timeout=5
        )
        nodes = answer.json()["data"]["summary"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    return any(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)
