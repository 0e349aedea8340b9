"""Nothing that the demo starts outlives it, and a taken port is told."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.local.processes import MARK, free_port, only_one, require_free, start, stop, sweep
from willis.errors import StepError

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]


def _gone(pid: int, within_s: float = 15) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_port_in_use_is_named_with_the_setting_that_moves_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StepError, match=rf"port {port} is in use.*WILLIS_SERVE_BIND"):
            require_free(port, "WILLIS_SERVE_BIND")


def test_a_free_port_is_accepted() -> None:
    require_free(free_port(), "WILLIS_SERVE_BIND")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(StepError, match="another demo runs"), only_one(tmp_path):
        pass


def test_a_stopped_child_is_gone_with_its_children(tmp_path: Path) -> None:
    shell = start(["bash", "-c", "sleep 300 & sleep 300"], tmp_path / "log", {"PATH": "/usr/bin:/bin"})
    time.sleep(0.5)
    family = [shell.pid, *(child.pid for child in psutil.Process(shell.pid).children())]
    stop(shell)
    assert len(family) >= 2
    assert all(_gone(pid) for pid in family)


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from infra.local.processes import start\n"
        f"child = start({SLEEP!r}, Path({str(tmp_path / 'log')!r}), dict())\n"
        "print(child.pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert _gone(child)


def test_a_sweep_ends_what_carries_the_folders_mark_and_nothing_else(tmp_path: Path) -> None:
    marked = subprocess.Popen(SLEEP, env={MARK: str(tmp_path)})
    other = subprocess.Popen(SLEEP, env={MARK: str(tmp_path / "another")})
    try:
        time.sleep(0.3)
        assert sweep(tmp_path) == 1
        assert _gone(marked.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
