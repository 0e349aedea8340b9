"""A Ray node that does not come up: said with its own words, and nothing of it is left."""

from pathlib import Path

import psutil
import pytest

from infra.local import ray_head as module
from infra.local.ray_head import ray_head
from willis.errors import RayError

pytestmark = pytest.mark.integration


def running() -> set[int]:
    """Children of this process that run; not theirs, which other tests' nodes start and end all the time."""
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def test_a_node_that_ends_at_once_is_told_with_its_exit_code_and_log(tmp_path: Path) -> None:
    before = running()
    with (
        pytest.raises(
            RayError, match=r"in 2 attempts: it ended with exit code \d+ .*ray\.log ends:\n(.|\n)+"
        ),
        ray_head(tmp_path / "ray.log", num_cpus=-1),
    ):
        pytest.fail("such a node cannot come up")
    assert running() == before


def test_a_node_that_does_not_answer_in_time_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_WITHIN_S", 2)
    before = running()
    with (
        pytest.raises(RayError, match=r"did not answer within 2 s; is the machine loaded\?"),
        ray_head(tmp_path / "ray.log"),
    ):
        pytest.fail("no node comes up in two seconds")
    assert running() == before
