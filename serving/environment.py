"""What Ray must have in its environment before it starts, so that the application can run on it.

Serve reads these when its own processes begin; a deployment cannot set them. Whoever starts Ray does: the
demo, the tests, a cluster's manifest.
"""

import os
import secrets
import socket
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Below what Linux gives to outgoing connections (32768 and up): a port drawn from there could be the near end
# of some connection when, a minute later, a server wants to listen on it.
SERVER_PORTS = range(20_000, 26_000)
REPLICA_PORTS = range(26_000, 32_000)
PORTS_PER_HEAD = 100


def serve_environment(scratch: Path, drain_s: int = 30) -> dict[str, str]:
    """Return the variables for one Ray head on this machine.

    HAProxy is the ingress; its files and ports are this head's own, because by default every Serve of a
    machine would share them: a port that a replica of one just left may be taken by a replica of another,
    and be asked for predictions by the first one's HAProxy.

    Args:
        scratch: an existing folder of this Ray head's own, short enough for Unix sockets.
        drain_s: how long a replica that is replaced goes on answering.
    """
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    metrics, stats = free_ports(2)
    block = free_block()
    http, grpc = block[: len(block) // 2], block[len(block) // 2 :]
    return {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "haproxy" / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(scratch / "haproxy" / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch / "haproxy"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "haproxy" / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(drain_s),
        # Serve gives its ingress 5 s to come up, which a busy machine does not keep.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }


def free_block() -> range:
    """Return neighbouring loopback ports that are free now, drawn so that two heads seldom get the same."""
    while True:
        at = secrets.randbelow(len(REPLICA_PORTS) // PORTS_PER_HEAD) * PORTS_PER_HEAD
        block = REPLICA_PORTS[at : at + PORTS_PER_HEAD]
        if all(map(_is_free, block)):
            return block


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return loopback ports to listen on that are free now, no two alike."""
    drawn = secrets.SystemRandom().sample(SERVER_PORTS, len(SERVER_PORTS))
    found = list(islice(filter(_is_free, drawn), count))
    if len(found) < count:
        raise OSError(f"fewer than {count} ports of {SERVER_PORTS} are free on loopback")
    return found
