"""The stages of the demo: Ray is started for training, and for nothing before it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local import circle
from infra.local.demo import Journal
from infra.local.source import source_of
from pipelines.local import StepRun
from willis.params import Params
from willis.provenance import GRAPH


class _Counted:
    """Stands for the Ray node; counts how often it was asked for."""

    asked = 0

    def ensure(self) -> None:
        self.asked += 1


def _asked_when(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often Ray is asked for when every step reports this state."""

    def run(_: Path, __: Params, ___: Path, on_step: Callable[[str, str], None]) -> dict[str, StepRun]:
        for step in GRAPH:
            on_step(step, state)
        return {step: StepRun(1.0, state == "cached", tmp_path) for step in GRAPH}

    monkeypatch.setattr(circle, "run_training", run)
    ray = _Counted()
    source = source_of("synthetic", tmp_path, Params())
    circle._pipeline(source, tmp_path, Journal(), ray)  # type: ignore[arg-type]
    return ray.asked


def test_training_starts_ray_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked_when("running", tmp_path, monkeypatch) == 1


def test_steps_from_the_cache_start_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked_when("cached", tmp_path, monkeypatch) == 0
