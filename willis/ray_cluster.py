"""Joining a running Ray cluster; shared by training, search and reports."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from willis.errors import RayError

CONNECT_WITHIN_S = 5.0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Join a running cluster, and leave it afterwards if this process had not joined before.

    Raises:
        RayError: nothing answers at `address`.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, TimeoutError, OSError, ValueError) as error:
        raise RayError(_no_cluster(address, str(error))) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits a minute for a closed port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_WITHIN_S).close()
    except OSError as error:
        raise RayError(_no_cluster(address, str(error))) from error


def _no_cluster(address: str, reason: str) -> str:
    first = (reason.strip() or "no reason given").splitlines()[0]
    return (
        f"no Ray cluster answers at {address!r}: {first}; "
        "start one with `ray start --head` (`make demo` starts its own) or set WILLIS_RAY_ADDRESS"
    )
