"""Pre-training on a real Ray cluster: a lost worker changes nothing, and two workers are one process."""

import json
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.fixtures.arrays import TinyCohort
from tests.fixtures.ray import RayHead
from willis.params import PretrainParams
from willis.pretraining.loop import PretrainRecord
from willis.settings import Settings
from willis.steps.pretrain import make_job, pretrain
from willis.training.loop import World

pytestmark = pytest.mark.integration

PARAMS = PretrainParams(method="brainmvp", epochs=5, batch_size=16, num_workers=2)


def test_a_worker_killed_during_pre_training_resumes_and_ends_as_one_undisturbed_process(
    tiny_ingest: TinyCohort, ray_head: RayHead, tmp_path: Path
) -> None:
    killed: list[int] = []
    out = tmp_path / "out"
    watcher = threading.Thread(target=_kill_a_worker, args=(ray_head, out / "progress.json", killed))
    watcher.start()
    summary = pretrain(tiny_ingest.ingest, out, PARAMS, Settings(ray_address=ray_head.address))
    watcher.join()
    assert killed, "no worker was found to kill"
    assert (summary.num_workers, summary.epochs) == (2, 5)
    bare = make_job(tiny_ingest.ingest, tmp_path / "bare", PARAMS).run(World(), lambda tick: None)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    for one, line in zip(bare.history, lines, strict=True):
        other = PretrainRecord.model_validate_json(line).model_dump(exclude={"seconds"}, exclude_none=True)
        expected = one.model_dump(exclude={"seconds"}, exclude_none=True)
        assert other == pytest.approx(expected, rel=1e-2, abs=1e-3), one.epoch
    _assert_alike(out / "encoder.safetensors", bare.best)


def _assert_alike(path: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import load_file

    for name, value in load_file(path).items():
        torch.testing.assert_close(weights[f"encoder.{name}"], value, rtol=1e-1, atol=2e-3, msg=name)


def _kill_a_worker(head: RayHead, progress: Path, killed: list[int]) -> None:
    """SIGKILL one training worker of this cluster as soon as the third epoch is under way."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        at = json.loads(progress.read_text()) if progress.exists() else {"epoch": 0}
        if at["epoch"] == 2:
            break
        time.sleep(0.005)
    # Of this cluster: another run of the tests may have one of its own on this machine.
    for process in psutil.Process(head.process.pid).children(recursive=True):
        if any("TrainWorker" in word for word in process.cmdline()):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return
