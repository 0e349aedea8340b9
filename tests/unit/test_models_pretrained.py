"""Encoder weights on disk, and what refuses to start from them."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from willis.errors import BundleError, ParamsError, StepError
from willis.models.pretrained import ENCODER, SUMMARY, load_encoder, pretrained_weights, save_encoder
from willis.models.vision import ImageEncoderName, VolumeEncoder
from willis.params import load_params
from willis.pretraining.brainmvp import BrainMVP, Views, brainmvp_loss

SHAPE = (16, 16, 8)


def _encoder(
    seed: int,
    sequences: tuple[str, ...] = ("dwi", "adc"),
    shape: tuple[int, int, int] = SHAPE,
    width: int = 32,
    name: str = "cnn",
) -> VolumeEncoder:
    torch.manual_seed(seed)
    encoder = VolumeEncoder(sequences, shape, width, 0.1, name)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("name", get_args(ImageEncoderName))
def test_every_encoder_is_taught_and_started_from_what_was_taught(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = BrainMVP(("dwi", "adc"), SHAPE, block=8, name=name)  # type: ignore[arg-type]
    views = Views(
        torch.randint(1, 256, (3, 2, *SHAPE), dtype=torch.uint8), torch.ones(3, 2, dtype=torch.bool),
        torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1]), torch.rand(3, 2, 2, 1) < 0.8, torch.ones(3),
    )  # fmt: skip
    brainmvp_loss(model(views, True), 0.1, 1.0).total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    save_encoder(model.encoder, tmp_path / ENCODER, "brainmvp")
    fresh = _encoder(1, name=name)
    load_encoder(fresh, tmp_path / ENCODER)
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_weights_of_another_encoder_are_refused_with_both_names(tmp_path: Path) -> None:
    save_encoder(_encoder(0, name="cnn_small"), tmp_path / ENCODER, "brainmvp")
    both = r"'cnn_small' \(pretrain.image_encoder\), .* has 'cnn' \(train.image_encoder\)"
    with pytest.raises(BundleError, match=both):
        load_encoder(_encoder(1), tmp_path / ENCODER)


def test_weights_that_name_no_encoder_are_of_the_one_there_was(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_encoder(_encoder(0), tmp_path / ENCODER, "brainmvp")
    told = {"encoder": json.dumps({"method": "brainmvp", "sequences": ["dwi", "adc"]})}
    save_file(load_file(tmp_path / ENCODER), tmp_path / "old.safetensors", told)
    load_encoder(_encoder(1), tmp_path / "old.safetensors")
    with pytest.raises(BundleError, match="'cnn' .* has 'swin'"):
        load_encoder(_encoder(1, name="swin"), tmp_path / "old.safetensors")


def test_params_that_would_teach_one_encoder_and_train_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("pretrain: {method: brainmvp, image_encoder: swin}\ntrain: {image_encoder: cnn_large}\n")
    with pytest.raises(ParamsError, match="pretrain.image_encoder is 'swin' and .* 'cnn_large'; .* equal"):
        load_params(path)
    path.write_text("pretrain: {method: none}\ntrain: {image_encoder: cnn_large}\n")
    assert load_params(path).train.image_encoder == "cnn_large"


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
