"""Two Serves on one machine must not answer for each other."""

import socket
from pathlib import Path

import pytest

from serving.environment import PORTS_PER_HEAD, REPLICA_PORTS, free_block, free_ports, serve_environment


def test_replicas_of_a_head_listen_in_a_block_of_its_own(tmp_path: Path) -> None:
    found = serve_environment(tmp_path)
    bounds = [
        int(found[f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT"])
        for kind in ("HTTP", "GRPC")
        for end in ("MIN", "MAX")
    ]
    assert bounds == sorted(bounds) and len(set(bounds)) == 4
    assert bounds[0] in REPLICA_PORTS and bounds[3] - bounds[0] + 1 == PORTS_PER_HEAD
    starts = {serve_environment(tmp_path)["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] for _ in range(12)}
    assert len(starts) > 6, "heads draw their blocks at random"


def test_servers_listen_where_no_outgoing_connection_begins() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    drawn = free_ports(200)
    assert len(set(drawn)) == 200 and max(drawn) < first
    assert not {*drawn} & {*REPLICA_PORTS} and max(REPLICA_PORTS) < first


def test_a_port_in_use_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr("serving.environment.SERVER_PORTS", range(port, port + 1))
        with pytest.raises(OSError, match="fewer than 1 ports"):
            free_ports(1)


def test_a_block_with_a_port_in_use_is_passed_over(monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", REPLICA_PORTS[7]))
        draws = iter([0, 1])
        monkeypatch.setattr("serving.environment.secrets.randbelow", lambda count: next(draws))
        assert free_block() == REPLICA_PORTS[PORTS_PER_HEAD : 2 * PORTS_PER_HEAD]
