"""Run the compiled training pipeline on this machine with KFP's local runner and its cache.

What each step had read is recorded the moment it ends, so that a run that is killed forgets nothing.
"""

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kfp import compiler, components, local

from pipelines.monitoring import graph as monitoring_graph
from pipelines.training import OUTPUTS, graph
from willis.errors import StepError
from willis.monitoring.results import MonitorSummary
from willis.params import Params
from willis.provenance import GRAPH, cohort_digest, last_seconds, record_step

ANSI = re.compile(r"\x1b\[[0-9;]*m")
STARTED = re.compile(r"^Executing task '([\w-]+)'")
CACHED = re.compile(r"^Task ([\w-]+) cache hit")
FINISHED = re.compile(r"^Task '([\w-]+)' finished with status (\w+)")
SAID = re.compile(r"^\s*willis\.errors\.(\w+: .+?)\n\s*$", re.MULTILINE | re.DOTALL)
LOG_TAIL_LINES = 25


@dataclass(frozen=True)
class StepRun:
    """How one step went: seconds of the run that made its output, and whether that run was an earlier one."""

    seconds: float
    cached: bool
    output: Path


@dataclass
class _Watch(logging.Filter):
    """Reads the local runner's own log records; it offers no other sign of progress."""

    on_step: Callable[[str, str], None]
    on_done: Callable[[str, float | None], None]
    started: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)

    __hash__ = object.__hash__

    def filter(self, record: logging.LogRecord) -> bool:
        message = ANSI.sub("", record.getMessage())
        if match := STARTED.match(message):
            self.on_step(match[1], "running")
            self.started[match[1]] = time.monotonic()
        elif match := CACHED.match(message):
            self.cached.add(match[1])
            self.on_done(match[1], None)
            self.on_step(match[1], "cached")
        elif match := FINISHED.match(message):
            if match[2] == "SUCCESS":
                self.seconds[match[1]] = time.monotonic() - self.started[match[1]]
                self.on_done(match[1], self.seconds[match[1]])
            self.on_step(match[1], match[2].lower())
        return True


def run_training(
    cohort: Path, params: Params, run: Path, on_step: Callable[[str, str], None]
) -> dict[str, StepRun]:
    """Compile and run the pipeline; finished steps come from the cache.

    Args:
        cohort: canonical BIDS cohort.
        params: one section per step.
        run: folder for the outputs, the cache and the log of this and earlier runs.
        on_step: told of each step's name and state (running, cached, success, failure); `running` comes
            before the step's process, so what the step needs may be started then.

    Returns:
        Step name -> how it went.

    Raises:
        StepError: a step failed; the message is the step's own, or the end of its log.
    """
    run.mkdir(parents=True, exist_ok=True)
    package = run / "training.yaml"
    compiler.Compiler().compile(graph(params, with_deploy=False, cluster=False), str(package))
    pipeline = components.load_component_from_file(str(package))
    digest = cohort_digest(cohort)
    watch = _Watch(on_step, lambda step, seconds: record_step(run, step, params, digest, seconds))
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run / "outputs"),
        enable_caching=True,
        cache_root=str(run / "cache"),
    )
    log = run / "pipeline.log"
    root = logging.getLogger()
    level = root.level
    root.addFilter(watch)
    root.setLevel(logging.INFO)
    try:
        with log.open("a") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            task = pipeline(cohort=str(cohort), cohort_digest=digest)
    except RuntimeError as error:
        raise StepError(f"{_failed(watch)} failed: {reason_in(log)}") from error
    finally:
        root.removeFilter(watch)
        root.setLevel(level)
    return {
        step: StepRun(
            seconds=watch.seconds.get(step) or last_seconds(run, step) or 0.0,
            cached=step in watch.cached,
            output=Path(task.outputs[OUTPUTS[step]].path),
        )
        for step in GRAPH
    }


def run_monitoring(since: datetime, until: datetime, params: Params, run: Path) -> MonitorSummary:
    """Compile and run the monitoring pipeline over one window.

    Args:
        since: start of the window, with offset.
        until: end of the window, with offset.
        params: one section per step.
        run: folder for the outputs and the log.

    Raises:
        StepError: the step failed; the message is the step's own, or the end of its log.
    """
    run.mkdir(parents=True, exist_ok=True)
    package = run / "monitoring.yaml"
    compiler.Compiler().compile(monitoring_graph(params, cluster=False), str(package))
    pipeline = components.load_component_from_file(str(package))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(run / "outputs"))
    log = run / "pipeline.log"
    try:
        with log.open("a") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            task = pipeline(since=since.isoformat(), until=until.isoformat())
    except RuntimeError as error:
        raise StepError(f"monitor failed: {reason_in(log)}") from error
    return MonitorSummary.model_validate_json((Path(task.outputs["drift"].path) / "monitor.json").read_text())


def prune(run: Path, keep: dict[str, StepRun]) -> None:
    """Remove the outputs of earlier runs that no kept step uses; volumes are large."""
    used = {step.output for step in keep.values()}
    for folder in (run / "outputs").glob("*/*"):
        if not any(output.is_relative_to(folder) for output in used):
            shutil.rmtree(folder)


def _failed(watch: _Watch) -> str:
    running = watch.started.keys() - watch.seconds.keys()
    return next(iter(running), None) or (list(watch.started) or ["the pipeline"])[-1]


def reason_in(log: Path) -> str:
    """What the step said on purpose; the end of its log where it said nothing."""
    lines = ANSI.sub("", log.read_text(errors="replace")).splitlines()[-LOG_TAIL_LINES:]
    said = SAID.findall("\n".join(lines) + "\n")
    return f"{said[-1]}\n(the whole log: {log})" if said else "\n".join([f"the end of {log}:", *lines])
