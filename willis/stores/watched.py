"""A module run as a process of its own, watched: for libraries whose retries nothing else can interrupt.

The asking side sends one request and reads lines; a process that says nothing for too long is killed, and one
whose asker dies is killed by the kernel. Requests travel by stdin, so that keys show in no process list.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


class SilenceError(Exception):
    """The process said nothing for longer than it may; it was killed."""


def ask(
    module: str, request: str, environment: dict[str, str], log: Path, silence_s: float
) -> Generator[str, None, None]:
    """Run a module and yield the lines it says.

    Args:
        module: dotted name; its `__main__` part calls `answer`.
        request: one text for its stdin.
        environment: variables beside this process's own.
        log: where its stderr, and whatever its libraries print, goes.
        silence_s: longest time between two lines.

    Raises:
        SilenceError: after the process was killed.
    """
    library = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (library, os.environ.get("PYTHONPATH"))))
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | environment | {"PYTHONPATH": path},
            text=True,
        )
    assert process.stdin is not None and process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        process.stdin.write(request)
        process.stdin.close()
        while (line := lines.get(timeout=silence_s)) is not None:
            yield line
    except queue.Empty:
        raise SilenceError from None
    except BrokenPipeError:
        return
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def answer(work: Callable[[str, Callable[[str], None]], None]) -> None:
    """The process's side: hand `work` the request and a function that says a line to the asker."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return
    words = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    work(sys.stdin.read(), lambda line: print(line, file=words))
