"""Many independent jobs over processes, with a progress bar; no process outlives the one that started it."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeVar

J = TypeVar("J")
A = TypeVar("A")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1


def num_processes(wanted: int) -> int:
    """Processes to use: as many as wanted, or one per core this process may run on."""
    return wanted or len(os.sched_getaffinity(0))


def work(
    make: Callable[[J], object],
    jobs: Sequence[J],
    aside: Callable[[A], R],
    argument: A | None,
    num_workers: int,
    *,
    title: str,
) -> R | None:
    """Run `make` on every job and, beside them, `aside` on its argument.

    Args:
        make: called once per job, in any order, in any process.
        jobs: what to make.
        aside: one longer calculation that shares the processes.
        argument: its argument; None means that it is not wanted.
        num_workers: processes; 0 means one per core, 1 means this one.
        title: stands before the progress bar.

    Returns:
        What `aside` returned.

    Raises:
        BrokenProcessPool: a process was killed from outside.
    """
    workers = num_processes(num_workers)
    with _progress() as bar:
        task = bar.add_task(title, total=len(jobs) + (argument is not None))
        if workers == 1 or len(jobs) + (argument is not None) < 2:
            return _alone(make, jobs, aside, argument, lambda: bar.advance(task))
        return _together(make, jobs, aside, argument, workers, lambda: bar.advance(task))


def _alone(
    make: Callable[[J], object],
    jobs: Sequence[J],
    aside: Callable[[A], R],
    argument: A | None,
    tick: Callable[[], None],
) -> R | None:
    for job in jobs:
        make(job)
        tick()
    if argument is None:
        return None
    found = aside(argument)
    tick()
    return found


def _together(
    make: Callable[[J], object],
    jobs: Sequence[J],
    aside: Callable[[A], R],
    argument: A | None,
    workers: int,
    tick: Callable[[], None],
) -> R | None:
    # spawn, not fork: the caller may hold threads (torch, kfp) whose locks a forked child would inherit
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_bind, initargs=(os.getpid(),))
    try:
        first: Future[R] | None = None if argument is None else pool.submit(aside, argument)
        waiting: set[Future[Any]] = {pool.submit(make, job) for job in jobs} | ({first} if first else set())
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                tick()
        return first.result() if first else None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bind(parent: int) -> None:
    """Die with the parent, even if it is killed; leave Ctrl-C to it; one thread per process."""
    import ctypes

    # cores are shared out by process; a second layer of threads would only fight over them
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
