"""The step `pretrain` in a bare process: what it writes, and what `train` makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.arrays import TinyCohort, tiny_job
from willis.errors import BundleError
from willis.models.network import TrimodalNetwork
from willis.models.pretrained import file_sha256
from willis.params import PretrainParams, TrainParams
from willis.pretraining.loop import PretrainJob
from willis.settings import Settings
from willis.steps.pretrain import PretrainSummary, pretrain
from willis.training.loop import Job, World, fit
from willis.training.start import start

PARAMS = PretrainParams(method="brainmvp", epochs=2, num_workers=1)
TRAIN = TrainParams(epochs=1, width=32, contrast_width=16, num_workers=1)
NOWHERE = Settings(ray_address="127.0.0.1:1")


@pytest.fixture(scope="module")
def pretrained(tiny_ingest: TinyCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("willis.steps.pretrain.train_on_cluster", _in_this_process)
        pretrain(tiny_ingest.ingest, out, PARAMS, NOWHERE)
    return out


def _in_this_process(job: PretrainJob, *_: object) -> None:
    job.run(World(), lambda tick: None)


def test_without_a_method_the_step_asks_no_cluster_and_says_so(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"of an earlier run")
    summary = pretrain(tiny_ingest.ingest, tmp_path, PretrainParams(), NOWHERE)
    assert summary == PretrainSummary.model_validate_json((tmp_path / "pretrain.json").read_text())
    assert (summary.method, summary.num_patients, summary.encoder_sha256) == ("none", 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["pretrain.json"]


def test_the_folder_holds_weights_metrics_and_a_picture(pretrained: Path) -> None:
    from matplotlib.image import imread

    summary = PretrainSummary.model_validate_json((pretrained / "pretrain.json").read_text())
    assert (summary.method, summary.epochs, summary.num_patients) == ("brainmvp", 2, 90)
    assert summary.encoder_sha256 == file_sha256(pretrained / "encoder.safetensors")
    assert len((pretrained / "metrics.jsonl").read_text().splitlines()) == 2
    picture = imread(pretrained / "reconstructions.png")
    assert picture.shape[1] > picture.shape[0] > 300 and np.ptp(picture[..., :3]) > 0.5


def test_a_finished_run_is_not_trained_again(tiny_ingest: TinyCohort, pretrained: Path) -> None:
    before = (pretrained / "pretrain.json").read_text()
    assert (
        pretrain(tiny_ingest.ingest, pretrained, PARAMS, NOWHERE).model_dump_json(indent=2) + "\n" == before
    )


def test_the_network_starts_from_the_pre_trained_encoder(
    tiny_ingest: TinyCohort, pretrained: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    job = tiny_job(tiny_ingest, tmp_path, TRAIN)
    network = TrimodalNetwork(job.config)
    start(
        network, job.cases, job.cases.rows("train", labelled_only=False), pretrained / "encoder.safetensors"
    )
    assert network.image is not None
    for name, value in load_file(pretrained / "encoder.safetensors").items():
        assert torch.equal(network.image.volume.state_dict()[name], value), name


def test_training_goes_another_way_from_a_pre_trained_start(
    tiny_ingest: TinyCohort, pretrained: Path, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, TRAIN)
    weights = pretrained / "encoder.safetensors"
    plain = fit(job, World())
    started = fit(_on(job, tmp_path / "started", weights), World())
    assert plain.history[0].loss != started.history[0].loss


def test_other_weights_are_another_run(tiny_ingest: TinyCohort, pretrained: Path, tmp_path: Path) -> None:
    job = tiny_job(tiny_ingest, tmp_path, TRAIN)
    plain, started = (_on(job, tmp_path, weights) for weights in (None, pretrained / "encoder.safetensors"))
    assert plain.checkpoints.fingerprint != started.checkpoints.fingerprint


def test_weights_of_another_grid_stop_training_with_what_to_do(
    tiny_ingest: TinyCohort, pretrained: Path, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, TRAIN)
    larger = replace(
        job,
        config=job.config.model_copy(update={"shape": (30, 26, 10)}),
        pretrained=pretrained / "encoder.safetensors",
    )
    with pytest.raises(BundleError, match=r"another architecture: it holds .*pretrain.method to none"):
        fit(larger, World())


def test_the_summary_of_training_names_the_weights_it_started_from(
    tiny_ingest: TinyCohort, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from willis.steps.train import train

    monkeypatch.setattr("willis.steps.train.train_on_cluster", lambda job, *_: fit(job, World()))
    image_alone = TRAIN.model_copy(update={"use_modalities": ("image",)})
    summary = train(tiny_ingest.ingest, tiny_ingest.features, tmp_path, image_alone, NOWHERE, pretrained)
    told = json.loads((tmp_path / "train.json").read_text())
    assert summary.pretrained_sha256 == told["pretrained_sha256"]
    assert told["pretrained_sha256"] == file_sha256(pretrained / "encoder.safetensors")


def _on(job: Job, folder: Path, weights: Path | None) -> Job:
    return Job.on(job.cases, job.config, job.params, folder, pretrained=weights)
