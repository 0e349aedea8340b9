"""Training on a real Ray cluster: what it ends with, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from tests.fixtures.arrays import TinyCohort, write_tiny_cohort
from tests.fixtures.ray import RayHead
from willis.errors import RayError, StepError
from willis.params import TrainParams
from willis.settings import Settings
from willis.steps.train import TrainSummary, make_job, train
from willis.training.loop import World, fit
from willis.training.metrics import EpochRecord

pytestmark = pytest.mark.integration

PARAMS = TrainParams(
    epochs=5,
    batch_size=16,
    width=32,
    contrast_width=16,
    dropout=0.0,
    patience=50,
    num_workers=2,
    learning_rate=2e-3,
)
TIMED = {"seconds", "data_wait_share"}


@pytest.fixture(scope="module")
def undisturbed(
    tiny_ingest: TinyCohort, ray_head: RayHead, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainSummary]:
    """One whole run on two workers, with the folder it wrote."""
    out = tmp_path_factory.mktemp("undisturbed")
    return out, _train(tiny_ingest, out, ray_head)


def _train(cohort: TinyCohort, out: Path, head: RayHead, params: TrainParams = PARAMS) -> TrainSummary:
    return train(cohort.ingest, cohort.features, out, params, Settings(ray_address=head.address))


def _records(out: Path) -> list[EpochRecord]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [EpochRecord.model_validate_json(line) for line in lines]


def _assert_same_course(one: list[EpochRecord], other: list[EpochRecord], tolerance: float) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        left, right = (record.model_dump(exclude=TIMED, exclude_none=True) for record in (a, b))
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, a.epoch)


def test_two_workers_take_the_course_of_one_bare_process(
    undisturbed: tuple[Path, TrainSummary], tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    out, summary = undisturbed
    job = make_job(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS)
    bare = fit(job, World())
    assert summary.num_workers == 2
    _assert_same_course(list(bare.history), _records(out), tolerance=2e-3)


def test_the_model_folder_holds_weights_that_the_contract_describes(
    undisturbed: tuple[Path, TrainSummary],
) -> None:
    from safetensors.torch import load_file

    from willis.models.network import NetworkConfig, TrimodalNetwork

    out, summary = undisturbed
    config = NetworkConfig.model_validate_json((out / "contract.json").read_text())
    network = TrimodalNetwork(config)
    network.load_state_dict(load_file(out / "model.safetensors"))
    assert summary == TrainSummary.model_validate_json((out / "train.json").read_text())
    assert summary.best_val_auc is not None and summary.best_val_auc > 0.75
    assert config.prevalence == pytest.approx(summary.prevalence)


def test_a_worker_killed_in_the_middle_of_an_epoch_changes_no_metric(
    undisturbed: tuple[Path, TrainSummary], tiny_ingest: TinyCohort, ray_head: RayHead, tmp_path: Path
) -> None:
    out, _ = undisturbed
    killed: list[int] = []
    watcher = threading.Thread(target=_kill_a_worker, args=(tmp_path / "progress.json", killed))
    watcher.start()
    _train(tiny_ingest, tmp_path, ray_head)
    watcher.join()
    assert killed, "no worker was found to kill"
    _assert_same_course(_records(out), _records(tmp_path), tolerance=1e-4)
    before, after = _weights(out), _weights(tmp_path)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4)


def test_a_run_whose_driver_was_killed_goes_on_where_it_was(
    undisturbed: tuple[Path, TrainSummary], tiny_ingest: TinyCohort, ray_head: RayHead, tmp_path: Path
) -> None:
    out, _ = undisturbed
    _run_and_kill_driver(tiny_ingest, ray_head, tmp_path, when=lambda at: at["epoch"] == 3)
    left = [path.name for path in (tmp_path / "checkpoints").glob("epoch-*")]
    assert left and not (tmp_path / "model.safetensors").exists()
    _train(tiny_ingest, tmp_path, ray_head)
    _assert_same_course(_records(out), _records(tmp_path), tolerance=1e-4)


def test_a_finished_run_is_not_trained_again(
    tiny_ingest: TinyCohort, undisturbed: tuple[Path, TrainSummary]
) -> None:
    out, summary = undisturbed
    nowhere = Settings(ray_address="127.0.0.1:1")
    assert train(tiny_ingest.ingest, tiny_ingest.features, out, PARAMS, nowhere) == summary


def test_a_ray_that_does_not_answer_is_named_with_what_to_do(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    nowhere = Settings(ray_address="127.0.0.1:1")
    with pytest.raises(RayError, match=r"no Ray cluster answers at '127.0.0.1:1'.*WILLIS_RAY_ADDRESS"):
        train(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS, nowhere)


def test_more_workers_than_the_cluster_has_room_for_are_refused_at_once(
    tiny_ingest: TinyCohort, ray_head: RayHead, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"num_workers": 64})
    with pytest.raises(RayError, match=r"has 4 CPUs; training asks for 64 \(params.yaml: train.num_workers"):
        _train(tiny_ingest, tmp_path, ray_head, params)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_rows(ray_head: RayHead, tmp_path: Path) -> None:
    cohort = write_tiny_cohort(tmp_path, num_patients=64, seed=5)
    params = PARAMS.model_copy(update={"learning_rate": 1e30, "clip_norm": 1e30})
    with pytest.raises(StepError, match=r"the loss is (nan|inf).*rows \d+.*of training_table.parquet"):
        _train(cohort, tmp_path / "out", ray_head, params)


def _kill_a_worker(progress: Path, killed: list[int]) -> None:
    """SIGKILL one training worker as soon as the third epoch is under way."""
    _wait_for(progress, lambda at: at["epoch"] == 2 and at["step"] % 6 >= 2)
    for process in psutil.process_iter(["name", "cmdline"]):
        if any("TrainWorker" in word for word in process.info["cmdline"] or []):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return


def _wait_for(progress: Path, when: Callable[[dict[str, int]], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if progress.exists() and when(json.loads(progress.read_text())):
            return
        time.sleep(0.005)
    pytest.fail(f"{progress} never got there")


def _run_and_kill_driver(
    cohort: TinyCohort, head: RayHead, out: Path, when: Callable[[dict[str, int]], bool]
) -> None:
    code = (
        "import sys; from pathlib import Path; from willis.params import TrainParams; "
        "from willis.settings import Settings; from willis.steps.train import train; "
        "train(*map(Path, sys.argv[1:4]), TrainParams.model_validate_json(sys.argv[4]), Settings())"
    )
    arguments = [str(cohort.ingest), str(cohort.features), str(out), PARAMS.model_dump_json()]
    environment = os.environ | {"WILLIS_RAY_ADDRESS": head.address}
    driver = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment)
    try:
        _wait_for(out / "progress.json", when)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()


def _weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")
