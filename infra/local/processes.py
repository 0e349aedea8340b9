"""Processes that must not outlive the demo, and leftovers of one that was killed."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from serving.environment import free_ports
from willis.errors import StepError

MARK = "WILLIS_LOCAL_ROOT"
PR_SET_PDEATHSIG = 1


def bound_to_parent() -> None:
    """In a child before exec: ask the kernel for SIGTERM when the parent dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a marked child that writes to a log and dies with this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=bound_to_parent,
        )


def stop(process: subprocess.Popen[bytes], timeout_s: float = 20) -> None:
    """End a child and everything below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        _end([*parent.children(recursive=True), parent], timeout_s)
    process.wait()


def sweep(root: Path) -> int:
    """End what an earlier run in this folder left behind; returns how many processes there were."""
    left = marked(root)
    _end(left, 10)
    return len(left)


def marked(root: Path) -> list[psutil.Process]:
    """Processes of a run in this folder, this process and its parents not among them."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [p for p in psutil.process_iter() if p.pid not in mine and _mark(p) == str(root)]


def free_port() -> int:
    """A loopback port that is free now."""
    return free_ports(1)[0]


def require_free(port: int, setting: str) -> None:
    """Refuse a port that another program listens on.

    Raises:
        StepError: names the port and the setting that moves it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StepError(
                f"port {port} is in use by another program; stop it, or set {setting} to another port"
            ) from None


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the folder against a second run.

    Raises:
        StepError: another run holds it.
    """
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(f"another demo runs in {root}; wait for it or stop it") from None
        yield


def _mark(process: psutil.Process) -> str | None:
    try:
        mark: str | None = process.environ().get(MARK)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None
    return mark


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
