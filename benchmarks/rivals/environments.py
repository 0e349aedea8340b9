"""One virtual environment per rival, and its script run in it within a budget of CPU time."""

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from infra.local.stages import folder_made, key_of

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
ENVIRONMENTS = Path("build/rivals")
START_UP_S = 120
"""CPU seconds beyond twice the budget before a rival is stopped: imports, and the setting it was at."""
SECONDS_PER_CPU_SECOND = 10
"""A rival that waits instead of working is stopped too."""


class RivalError(Exception):
    """A rival could not be installed, died, or left something else than its predictions; says which."""


@dataclass(frozen=True)
class Rival:
    """One rival: its name, the script that runs it and what its environment holds."""

    name: str
    script: Path
    requirements: Path

    @classmethod
    def named(cls, name: str) -> "Rival":
        """Return the rival of this package with this name."""
        return cls(name, HERE / f"{name}.py", HERE / "requirements" / f"{name}.txt")

    def key(self) -> str:
        """Digest of all that decides what it predicts, but for data, budget and seed."""
        read = (self.script, self.requirements, HERE / "given.py")
        return key_of(*(path.read_text() for path in read))


@dataclass(frozen=True)
class Spent:
    """What one run cost."""

    seconds: float
    cpu_seconds: float


def python_of(rival: Rival, root: Path = ENVIRONMENTS) -> Path:
    """Return the Python of a rival's environment, which is made anew when its requirements change.

    Raises:
        RivalError: it does not install.
    """
    folder = root.resolve() / rival.name
    python = folder / "bin" / "python"

    def make() -> None:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
        _finished([sys.executable, "-m", "venv", str(folder)], "cannot be installed")
        _finished([*pip, "install", "--requirement", str(rival.requirements)], "cannot be installed")

    folder_made(folder, key_of(rival.requirements.read_text()), make)
    return python


def run_script(rival: Rival, python: Path, folder: Path, budget_s: float, seed: int) -> Spent:
    """Let a rival's script read train.parquet and test.parquet in `folder` and write predictions.parquet.

    The folder is the script's working directory and all that it is told of the data.

    Raises:
        RivalError: it dies, or is stopped for using far more than its budget.
    """
    # -P: a script named as its library must not import itself
    command = [str(python), "-P", str(rival.script), "--budget", str(budget_s), "--seed", str(seed)]
    limit = int(2 * budget_s) + START_UP_S
    started, before = time.perf_counter(), _cpu_seconds_of_children()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (limit, limit))
        try:
            _, said = process.communicate(timeout=SECONDS_PER_CPU_SECOND * limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RivalError(f"took longer than {SECONDS_PER_CPU_SECOND * limit} s") from None
    if process.returncode < 0:
        raise RivalError(f"was stopped by signal {-process.returncode}; it may use {limit} CPU seconds")
    if process.returncode:
        raise RivalError(f"died: {_last_line(said)}")
    return Spent(time.perf_counter() - started, _cpu_seconds_of_children() - before)


def _environment(folder: Path) -> dict[str, str]:
    """One thread for everybody, nothing from a hub, and no word of where the data lie."""
    switches = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OPENBLAS_CORETYPE") if name in os.environ}
    return kept | switches | threads | {"HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}


def _finished(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RivalError(f"{what}: {_last_line(done.stderr or done.stdout)}")


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
