"""What a run of the demo costs: time, the most memory that all its processes held together, disk."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from infra.local.processes import marked

SAMPLE_EVERY_S = 2.0


class Cost(BaseModel):
    """Seconds from start to summary; mebibytes at the peak, shared pages counted once; mebibytes on disk."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    peak_memory_mb: float
    disk_mb: float


@dataclass
class Meter:
    """Watches a run; `read` may be asked at any time."""

    root: Path
    started: float
    peak_bytes: int = 0

    def read(self) -> Cost:
        """What the run has cost so far."""
        self.sample()
        return Cost(
            seconds=round(time.monotonic() - self.started, 1),
            peak_memory_mb=round(self.peak_bytes / 2**20),
            disk_mb=round(_size(self.root) / 2**20),
        )

    def sample(self) -> None:
        """Look at the run's processes once."""
        held = sum(_proportional_bytes(process) for process in [psutil.Process(), *marked(self.root)])
        self.peak_bytes = max(self.peak_bytes, held)


@contextlib.contextmanager
def metered(root: Path) -> Iterator[Meter]:
    """Watch this process and every process that carries the mark of `root` until the block ends."""
    meter, over = Meter(root, time.monotonic()), threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_EVERY_S):
            meter.sample()

    watcher = threading.Thread(target=watch, name="cost", daemon=True)
    watcher.start()
    try:
        yield meter
    finally:
        over.set()
        watcher.join()


def _proportional_bytes(process: psutil.Process) -> int:
    """A page that n processes share counts 1/n in each, so that the sum is what the machine gives."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0


def _size(root: Path) -> int:
    """Bytes on disk below a folder; a file with several names counts once."""
    files = {}
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            files[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(files.values())
