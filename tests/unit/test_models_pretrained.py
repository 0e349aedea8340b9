"""Encoder weights on disk, and what refuses to start from them."""

import json
from pathlib import Path

import pytest
import torch

from willis.errors import BundleError, StepError
from willis.models.pretrained import ENCODER, SUMMARY, load_encoder, pretrained_weights, save_encoder
from willis.models.vision import VolumeEncoder

SHAPE = (16, 16, 8)


def _encoder(
    seed: int,
    sequences: tuple[str, ...] = ("dwi", "adc"),
    shape: tuple[int, int, int] = SHAPE,
    width: int = 32,
) -> VolumeEncoder:
    torch.manual_seed(seed)
    encoder = VolumeEncoder(sequences, shape, width, 0.1)  # type: ignore[arg-type]
    encoder.stem.template.data.normal_()
    return encoder


def test_an_encoder_of_another_width_starts_with_everything_but_the_last_map(tmp_path: Path) -> None:
    taught, fresh = _encoder(0), _encoder(1, width=64)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    save_encoder(taught, tmp_path / ENCODER, "brainmvp")
    load_encoder(fresh, tmp_path / ENCODER)
    for name, value in fresh.state_dict().items():
        expected = before[name] if name.startswith("body.pool") else taught.state_dict()[name]
        assert torch.equal(value, expected), name


def test_weights_of_other_sequences_are_refused(tmp_path: Path) -> None:
    save_encoder(_encoder(0), tmp_path / ENCODER, "brainmvp")
    with pytest.raises(BundleError, match=r"another architecture: it holds sequences \('dwi', 'adc'\)"):
        load_encoder(_encoder(1, sequences=("adc", "dwi")), tmp_path / ENCODER)


def test_weights_of_another_grid_are_refused_with_the_first_shape_that_differs(tmp_path: Path) -> None:
    save_encoder(_encoder(0), tmp_path / ENCODER, "brainmvp")
    with pytest.raises(BundleError, match=r"holds \(1, 64, 2, 2, 2\) for body.place, .*\(1, 64, 3, 2, 2\)"):
        load_encoder(_encoder(1, shape=(24, 16, 8)), tmp_path / ENCODER)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / ENCODER).write_bytes(b"no weights")
    with pytest.raises(BundleError, match="cannot be read: .*run `willis pretrain` again"):
        load_encoder(_encoder(0), tmp_path / ENCODER)


def test_without_a_method_there_are_no_weights_to_start_from(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps({"method": "none"}))
    assert pretrained_weights(tmp_path) is None
    (tmp_path / SUMMARY).write_text(json.dumps({"method": "brainmvp"}))
    assert pretrained_weights(tmp_path) == tmp_path / ENCODER


def test_an_unfinished_pre_training_is_not_started_from(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"pretrain.json is missing; run `willis pretrain` first"):
        pretrained_weights(tmp_path)
