"""The stages of the demo: which servers a step starts, and that `why` knows what the source had adapted."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local import circle, demo
from infra.local.demo import Journal
from infra.local.source import Source, source_of
from pipelines.local import StepRun
from willis.params import Params, ReportParams
from willis.provenance import GRAPH, cohort_digest, explain, record_step


class _Asked:
    """Stands for the servers; notes which were asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def ray(self) -> None:
        self.names.append("ray")

    def reader(self, _: ReportParams) -> None:
        self.names.append("reader")


def _asked_when(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which servers are asked for when every step reports this state."""

    def run(_: Path, __: Params, ___: Path, on_step: Callable[[str, str], None]) -> dict[str, StepRun]:
        for step in GRAPH:
            on_step(step, state)
        return {step: StepRun(1.0, state == "cached", tmp_path) for step in GRAPH}

    monkeypatch.setattr(circle, "run_training", run)
    up = _Asked()
    source = source_of("synthetic", tmp_path, Params())
    circle._pipeline(source, tmp_path, Journal(), up)  # type: ignore[arg-type]
    return up.names


def test_the_reports_start_the_reader_and_training_starts_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _asked_when("running", tmp_path, monkeypatch) == ["reader", "ray"]


def test_steps_from_the_cache_start_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked_when("cached", tmp_path, monkeypatch) == []


class _StopError(Exception):
    """Raised in the place of the first stage."""


def test_why_finds_no_difference_in_what_the_demo_itself_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    started: list[Source] = []

    def stop(source: Source, *_: object) -> None:
        started.append(source)
        raise _StopError

    monkeypatch.setattr(circle, "run_circle", stop)
    monkeypatch.setattr(demo, "require_free", lambda *_: None)
    (tmp_path / "soop").mkdir()
    root, data = tmp_path / "demo", f"soop:{tmp_path / 'soop'}"
    words = Namespace(data=data, params=repository / "params.yaml", patients=None, stream_patients=80)
    with pytest.raises(_StopError):
        demo._run(root, words, meter=None)  # type: ignore[arg-type]
    (source,) = started
    assert source.params.ingest.sequences == ("lesion",)
    for step in ("version", "ingest"):
        record_step(root / "pipeline", step, source.params, cohort_digest(source.cohort), 1.0)
    assert explain("ingest", root / "pipeline").done
