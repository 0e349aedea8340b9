"""The local runner: what a run that is killed had finished stays known."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.local import ANSI
from willis.params import Params
from willis.provenance import last_seconds, why

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "participants.tsv").write_text("participant_id\nsub-1\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _started(run: Path, cohort: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.cheap_pipeline", str(run), str(cohort)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _kill_in_ingest(run: Path, cohort: Path) -> None:
    process = _started(run, cohort)
    log, deadline = run / "pipeline.log", time.monotonic() + 120
    while not (log.is_file() and "Executing task 'ingest'" in ANSI.sub("", log.read_text())):
        assert process.poll() is None, "the pipeline ended before it could be killed"
        assert time.monotonic() < deadline, "ingest never started"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _finish(run: Path, cohort: Path) -> dict[str, Any]:
    (run / "gate").touch()
    process = _started(run, cohort)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, (run / "pipeline.log").read_text()[-2000:]
    steps: dict[str, Any] = json.loads(output.splitlines()[-1])
    return steps


def test_a_step_that_ended_before_a_kill_is_done_and_keeps_its_seconds(run: Path, cohort: Path) -> None:
    _kill_in_ingest(run, cohort)
    assert why("version", Params(), run, cohort).done
    assert not why("ingest", Params(), run, cohort).done
    steps = _finish(run, cohort)
    assert {name: step["cached"] for name, step in steps.items()} == {"version": True, "ingest": False}
    assert steps["version"]["seconds"] > 0
    assert why("ingest", Params(), run, cohort).done


def test_a_step_from_the_cache_without_a_record_is_recorded(run: Path, cohort: Path) -> None:
    run.mkdir()
    _finish(run, cohort)
    (run / "steps.json").unlink()
    steps = _finish(run, cohort)
    assert all(step["cached"] for step in steps.values())
    assert why("ingest", Params(), run, cohort).done
    assert last_seconds(run, "ingest") is None
