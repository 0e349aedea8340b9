"""The step `train` without a cluster: what it writes when the training is done."""

from pathlib import Path

import pytest

from tests.file_limit import files_of_at_most
from tests.fixtures.arrays import TinyCohort
from willis.errors import StepError
from willis.params import TrainParams
from willis.settings import Settings
from willis.steps.train import make_job, train
from willis.training.loop import World, fit

PARAMS = TrainParams(epochs=1, batch_size=32, width=32, contrast_width=16)
NOWHERE = Settings(ray_address="127.0.0.1:1")


def test_a_full_disk_at_the_weights_is_said_and_nothing_is_trained_twice(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    fit(make_job(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS), World())
    message = r"model\.safetensors cannot be written: .*File too large.*free some space"
    with pytest.raises(StepError, match=message), files_of_at_most(20_000):
        train(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS, NOWHERE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "embeddings"]
    train(tiny_ingest.ingest, tiny_ingest.features, tmp_path, PARAMS, NOWHERE)
    assert (tmp_path / "model.safetensors").stat().st_size > 20_000
    assert (tmp_path / "train.json").exists()
