"""A search on a Ray cluster: the only module that imports ray.tune.

Every trial is one process that runs `trial.run_trial`; ASHA (asynchronous successive halving, Li et al.,
MLSys 2020) stops those that are behind. What was reached lies in the trials' own folders. A search that was
killed goes on from these, not from Tune's snapshot: the snapshot may be older than what was trained, its
scheduler has forgotten the trials that ended, and restoring it unpickles whatever lies in that folder.
"""

import io
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace
from typing import Any

from willis.errors import RayError
from willis.params import TuneParams
from willis.ray_cluster import connected
from willis.training.distributed import FAILURE, check_size, write_whole
from willis.training.trial import (
    CHECKPOINTS,
    ENDED,
    Course,
    Search,
    crash_of,
    objective,
    read_course,
    write_failure,
)

VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' folders hold what these would log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would take Ctrl-C for a search that ended well
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # train.text_encoder may be a relative path
}
POLL_S = 0.5
Look = Callable[[list[Course]], None]


def search_on_cluster(search: Search, tune: TuneParams, address: str, look: Look) -> list[Course]:
    """Run the trials that have not ended yet.

    Args:
        search: what to try; its paths must be readable from every node.
        tune: section `tune` of params.yaml.
        address: `auto`, host:port, or ray://host:port.
        look: called now and then with the courses of all trials.

    Returns:
        One course per trial, all of them ended.

    Raises:
        RayError: no cluster answers, a trial does not fit on it, or the search broke off.
    """
    todo = [course.number for course in _courses(search) if course.fate in ("open", "failed")]
    for number in todo:
        (search.trial(number) / FAILURE).unlink(missing_ok=True)
    if todo:
        os.environ.update(VARIABLES)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # reasons stand in the table
        with connected(address):
            check_size(search.trials[0].model_copy(update={"num_workers": 1}), address)
            with _watched(search, look):
                _run_tuner(search, tune, todo)
    courses = _courses(search)
    num_open = sum(course.fate == "open" for course in courses)
    if num_open:
        raise RayError(f"the search broke off with {num_open} trials to go; run `willis tune` again to go on")
    return courses


def _courses(search: Search) -> list[Course]:
    return [read_course(search, number) for number in range(len(search.trials))]


def _run_tuner(search: Search, tune: TuneParams, todo: list[int]) -> None:
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, grid_search, with_resources

    params = search.trials[0]

    def trial(config: dict[str, Any]) -> None:
        _work(search, config["number"])

    resources = {"cpu": float(params.threads_per_worker), "gpu": float(params.use_gpu)}
    tuner = Tuner(
        with_resources(trial, resources),
        param_space={"number": grid_search(todo)},
        tune_config=TuneConfig(scheduler=_scheduler(search, tune), max_concurrent_trials=tune.max_concurrent),
        run_config=RunConfig(
            name="tune",
            storage_path=str(search.folder / "ray"),
            failure_config=FailureConfig(max_failures=params.max_failures),
            callbacks=[_marker(search)],
            verbose=0,
        ),
    )
    shutil.rmtree(search.folder / "ray" / "tune", ignore_errors=True)
    try:
        with redirect_stdout(io.StringIO()):  # Tune prints tables even when told to be silent
            tuner.fit()
    except Exception as error:  # ray.tune raises several unrelated classes
        raise RayError(
            f"the search on Ray ended: {error}; what was trained is kept, run `willis tune` again to go on"
        ) from error


def _work(search: Search, number: int) -> None:
    """One trial: this runs on the cluster."""
    from ray import tune

    from willis.training.trial import run_trial

    run_trial(search, number, lambda epochs, value: tune.report({"epochs": epochs, "objective": value}))


def _scheduler(search: Search, tune: TuneParams) -> Any:
    """ASHA, told what the trials reached that ended before this process began."""
    from ray.tune.schedulers import ASHAScheduler

    params = search.trials[0]
    scheduler: Any = ASHAScheduler(
        time_attr="epochs",
        metric="objective",
        mode="max" if params.stop_on == "auc" else "min",
        max_t=params.epochs,
        grace_period=tune.grace_epochs,
        reduction_factor=tune.reduction_factor,
    )
    for course in _courses(search):
        if course.fate in ("finished", "stopped"):
            before = SimpleNamespace(trial_id=f"before-{course.number}")
            scheduler.on_trial_add(None, before)
            for epochs in range(1, len(course.records) + 1):
                value = objective(course.records[:epochs], params.stop_on)
                scheduler.on_trial_result(None, before, {"epochs": epochs, "objective": value})
    return scheduler


def _marker(search: Search) -> Any:
    """Writes into a trial's folder that it ended: what Tune knows must outlive this process."""
    from ray.tune import Callback

    class Marker(Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            folder = search.trial(trial.config["number"])
            if not (folder / FAILURE).exists():
                write_whole(folder / ENDED, "{}\n")
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            folder = search.trial(trial.config["number"])
            write_failure(folder, crash_of(folder))

    return Marker()


@contextmanager
def _watched(search: Search, look: Look) -> Iterator[None]:
    """Look at the trials' folders from a thread, while Tune has this one."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_S):
            look(_courses(search))

    thread = threading.Thread(target=watch, name="tune-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look(_courses(search))
