"""Image encoders by name: sizes, windows, templates in each, and what freezing one leaves to learn."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist

from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.networks import PATTERNS, SEQUENCES, SHAPE, network_with_opinions, small_batch, small_config
from willis.errors import ParamsError
from willis.imaging.shards import decode
from willis.models.frozen import KeptTops
from willis.models.losses import total_loss
from willis.models.network import NetworkConfig, TrimodalNetwork
from willis.models.pretrained import ENCODER, LAST_MAP, save_encoder
from willis.models.swin import SwinPair, window_of
from willis.models.vision import ENCODERS, Block, ImageEncoderName, VolumeEncoder, channels_last
from willis.params import PretrainParams, TrainParams
from willis.training.loop import World, fit, reuse_freed_memory

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = get_args(ImageEncoderName)
SEQUENCE_PATTERNS = [pattern for pattern in product([False, True], repeat=3) if any(pattern)]


def _block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.space.weight": (width, 1, 3, 3, 3),
        f"{name}.space.bias": (width,),
        f"{name}.norm.weight": (width,),
        f"{name}.norm.bias": (width,),
        f"{name}.mlp.0.weight": (2 * width, width),
        f"{name}.mlp.0.bias": (2 * width,),
        f"{name}.mlp.2.weight": (width, 2 * width),
        f"{name}.mlp.2.bias": (width,),
    }


# Of the networks in the bundles that were written before encoders had names.
BEFORE_NAMES = {
    "image.volume.stem.template": (3, 24, 28, 10),
    "image.volume.stem.project.weight": (24, 3, 4, 4, 2),
    "image.volume.stem.project.bias": (24,),
    "image.volume.body.down.weight": (64, 24, 2, 2, 2),
    "image.volume.body.down.bias": (64,),
    "image.volume.body.norm.weight": (64,),
    "image.volume.body.norm.bias": (64,),
    "image.volume.body.place": (1, 64, 3, 4, 3),
    **_block("image.volume.body.low", 64),
    "image.volume.body.middle.weight": (128, 64, 2, 2, 2),
    "image.volume.body.middle.bias": (128,),
    **_block("image.volume.body.high.0", 128),
    **_block("image.volume.body.high.1", 128),
    "image.volume.body.pool.0.weight": (256,),
    "image.volume.body.pool.0.bias": (256,),
    "image.volume.body.pool.2.weight": (32, 256),
    "image.volume.body.pool.2.bias": (32,),
    "table.linear.weight": (32, 4),
    "table.linear.bias": (32,),
    "table.mlp.0.weight": (32, 4),
    "table.mlp.0.bias": (32,),
    "table.mlp.3.weight": (32, 32),
    "table.mlp.3.bias": (32,),
}


def _encoder(name: str, seed: int = 0) -> VolumeEncoder:
    torch.manual_seed(seed)
    encoder = VolumeEncoder(SEQUENCES, SHAPE, 16, 0.0, name)  # type: ignore[arg-type]
    encoder.stem.template.data.normal_()
    return encoder


def _studies(present: list[tuple[bool, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(1, 256, (len(present), 3, *SHAPE), dtype=torch.uint8), torch.tensor(present)


def test_the_default_network_has_the_parameters_of_bundles_that_exist() -> None:
    shapes = {
        name: tuple(value.shape) for name, value in TrimodalNetwork(small_config()).state_dict().items()
    }
    encoders = {n: s for n, s in shapes.items() if n.startswith(("image.volume.", "table."))}
    assert encoders == BEFORE_NAMES


def test_a_contract_that_names_no_encoder_means_the_ones_there_were() -> None:
    old = small_config().model_dump_json(exclude={"image_encoder", "table_encoder"})
    assert NetworkConfig.model_validate_json(old) == small_config(image_encoder="cnn", table_encoder="mlp")


def test_the_encoders_of_params_are_those_of_the_network() -> None:
    for section in (TrainParams, PretrainParams):
        assert set(get_args(section.model_fields["image_encoder"].annotation)) == {*ENCODERS} == {*NAMES}


def test_the_three_sizes_of_the_cnn_grow() -> None:
    small, usual, large = (
        sum(p.numel() for p in _encoder(name).body.parameters()) for name in ("cnn_small", "cnn", "cnn_large")
    )
    assert 3 * small < usual and 3 * usual < large


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_every_encoder_learns_something(name: str) -> None:
    encoder, (volume, present) = _encoder(name), _studies(SEQUENCE_PATTERNS)
    encoder(volume, present).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("fusion", ["vdafm_pooled", "vdafm_token"])
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_every_encoder_answer_all_seven_patterns_in_one_batch_as_alone(
    name: str, fusion: str
) -> None:
    torch.manual_seed(0)
    network = network_with_opinions(small_config(image_encoder=name, fusion=fusion)).eval()
    batch = small_batch(PATTERNS)
    together = network(batch).logit
    for row in range(len(PATTERNS)):
        alone = network(batch.map(lambda tensor, row=row: tensor[row : row + 1])).logit
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    total_loss(network.scored(batch, network(batch)), 0.0, 0.0).total.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_sequence_is_its_template_in_every_encoder(name: str) -> None:
    encoder, (volume, present) = _encoder(name).eval(), _studies(SEQUENCE_PATTERNS)
    x, y, z = SHAPE
    encoder.stem.template.data[:, x:] = 0  # padding of a volume is 0, and a template's would not be
    encoder.stem.template.data[:, :, y:] = 0
    filled = decode(volume, SEQUENCES)
    for row, pattern in enumerate(SEQUENCE_PATTERNS):
        for channel, there in enumerate(pattern):
            if not there:
                filled[row, channel] = encoder.stem.template.detach()[channel, :x, :y, :z]
    whole = encoder(filled, torch.ones_like(present))
    torch.testing.assert_close(encoder(volume, present), whole, rtol=1e-4, atol=1e-4)


def test_windows_cut_the_grid_most_evenly() -> None:
    assert window_of((11, 13, 10)) == (6, 7, 5)
    assert window_of((6, 7, 5)) == (6, 7, 5)
    assert window_of((14, 15, 1)) == (7, 5, 1)


@pytest.mark.parametrize(
    ("at", "within", "shifted"), [(0, "0123", "01"), (3, "0123", "2345"), (7, "4567", "67")]
)
def test_a_token_is_seen_in_its_window_and_then_in_the_shifted_one_alone(
    at: int, within: str, shifted: str
) -> None:
    torch.manual_seed(0)
    pair = SwinPair(16, (8, 3, 2))  # windows of 4x3x2, shifted by 2 along the first axis alone
    tokens = torch.randn(1, 8, 3, 2, 16)
    other = tokens.clone()
    other[0, at, 1, 1, 0] += 3.0
    for block, mask, expected in ((pair.within, None, within), (pair.shifted, pair.mask, shifted)):
        moved = (block(other, mask) - block(tokens, mask)).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
        assert "".join(str(place) for place in moved.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_encoder_says_what_it_said_and_encodes_no_study_twice(name: str) -> None:
    encoder, (volume, present) = _encoder(name), _studies(SEQUENCE_PATTERNS)
    expected = encoder(volume, present).detach()
    encoder.freeze()
    asked: list[int] = []
    encoder.kept = KeptTops(lambda *study: asked.append(len(study[0])) or encoder.encoded(*study))
    for order in (range(7), reversed(range(7))):
        rows = torch.tensor([*order])
        torch.testing.assert_close(encoder(volume[rows], present[rows]), expected[rows], rtol=1e-4, atol=1e-5)
    assert asked == [1] * 7


def test_the_same_codes_with_another_sequence_hidden_are_another_study() -> None:
    encoder, (volume, _) = _encoder("cnn_small"), _studies([(True, True, True)])
    encoder.freeze()
    full, hidden = (encoder(volume, torch.tensor([[True, True, there]])) for there in (True, False))
    assert not torch.allclose(full, hidden)


def test_beyond_its_limit_nothing_more_is_kept() -> None:
    asked: list[float] = []
    kept = KeptTops(lambda volume, _: asked.append(float(volume.max())) or volume * 2, limit_bytes=4)
    volume, present = torch.tensor([1.0, 2.0])[:, None, None, None, None], torch.ones(2, 1, dtype=torch.bool)
    assert torch.equal(kept.tops(volume, present), kept.tops(volume, present))
    assert asked == [1.0, 2.0, 2.0]


def test_training_leaves_a_frozen_encoder_where_pre_training_left_it(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = TrainParams(
        epochs=2, width=32, contrast_width=16, image_encoder="cnn_small", freeze_image_encoder=True
    )
    job = tiny_job(tiny_ingest, tmp_path, params)
    taught = _encoder("cnn_small", seed=5)
    save_encoder(taught, tmp_path / ENCODER, "brainmvp")
    state = fit(replace(job, pretrained=tmp_path / ENCODER), World())
    torch.manual_seed(params.seed)
    started = TrimodalNetwork(job.config).state_dict()
    fixed = {f"image.volume.{n}": v for n, v in taught.state_dict().items() if not n.startswith(LAST_MAP)}
    for name, value in state.network.items():
        assert torch.equal(value, fixed[name]) if name in fixed else not torch.equal(value, started[name]), (
            name
        )


def test_nothing_is_frozen_that_nothing_has_taught(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    params = TrainParams(epochs=1, width=32, contrast_width=16, freeze_image_encoder=True)
    with pytest.raises(
        ParamsError, match="freeze_image_encoder is true and .* no pre-trained .*willis pretrain"
    ):
        fit(tiny_job(tiny_ingest, tmp_path, params), World())


def test_ddp_takes_a_frozen_encoder_without_looking_for_unused_parameters(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        network, batch = TrimodalNetwork(small_config(image_encoder="cnn_small")), small_batch(PATTERNS)
        network.image.volume.freeze()
        model = torch.nn.parallel.DistributedDataParallel(network)
        for _ in range(2):  # the second step is the one that a parameter without a gradient would stop
            total_loss(network.scored(batch, model(batch)), 0.0, 0.0).total.backward()
        learning = {name for name, p in network.named_parameters() if p.requires_grad}
        assert learning == {name for name, p in network.named_parameters() if p.grad is not None}
        frozen = {name for name, _ in network.named_parameters()} - learning
        assert frozen and all(name.startswith("image.volume.") for name in frozen)
    finally:
        dist.destroy_process_group()


def test_a_grid_of_two_places_learns_in_bfloat16_whatever_lay_in_memory_before() -> None:
    """torch's own gradient of a depthwise weight holds freed memory there."""
    reuse_freed_memory()
    block = Block(64, 3)
    tokens = channels_last(torch.randn(23, 64, 2, 2, 2, generator=torch.Generator().manual_seed(1)))
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = block(tokens)
        sizes = [4**power for power in range(3, 10) for _ in range(4)]
        freed = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in sizes]
        del freed
        mixed.float().square().mean().backward()
        assert all(
            torch.isfinite(weight.grad).all() for weight in block.parameters() if weight.grad is not None
        )
