"""BrainMVP against what its equations say, written out in loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from willis.errors import ParamsError
from willis.imaging.shards import decode
from willis.params import PretrainParams
from willis.pretraining.brainmvp import BrainMVP, Rebuilt, Views, brainmvp_loss
from willis.pretraining.loop import phase
from willis.pretraining.masking import Draw, as_tensors, block_grid, check_block, draw, spread

SEQUENCES = ("dwi", "adc", "flair")
SHAPE = (18, 22, 10)  # no whole number of blocks along any axis
PADDED, GRID, TOKENS = (20, 24, 10), (3, 3, 2), (5, 6, 5)


def _views(seed: int = 0, num: int = 4) -> Views:
    """Studies that lack sequences: the second has DWI alone, the third no ADC."""
    rng = np.random.default_rng(seed)
    present = np.ones((num, 3), bool)
    present[1] = (True, False, False)
    present[2] = (True, False, True)
    volume = rng.integers(0, 255, (num, 3, *SHAPE)).astype(np.uint8)
    draws = [draw(there, GRID, 0.8, rng) for there in present]
    return Views(torch.from_numpy(volume), torch.from_numpy(present), *as_tensors(draws), torch.ones(num))


def _model(seed: int = 0) -> BrainMVP:
    torch.manual_seed(seed)
    model = BrainMVP(SEQUENCES, SHAPE, block=8)
    model.encoder.stem.template.data.normal_()
    return model


def _by_voxel(model: BrainMVP, views: Views, row: int, cross: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Both views of one study as whole volumes, voxel by voxel; absent sequences stand as their templates."""
    target, filler = int(views.target[row]), int(views.filler[row])
    values = torch.zeros(3, *PADDED)
    values[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]] = decode(views.volume[row], SEQUENCES)
    template = model.encoder.stem.template.detach()
    view_a, view_b = template.clone(), template.clone()
    for x, y, z in np.ndindex(*PADDED):
        own = values[target, x, y, z]
        hidden = bool(views.blocks[row, x // 8, y // 8, z // 8])
        lent = values[filler, x, y, z] if cross and filler != target else template[target, x, y, z]
        view_a[target, x, y, z] = template[target, x, y, z] if hidden else own
        view_b[target, x, y, z] = lent if hidden else own
    return view_a, view_b


def test_blocks_are_hidden_at_exactly_the_rate() -> None:
    for rate, expected in ((0.8, 572), (0.5, 358), (0.333, 238)):
        hidden = draw(np.ones(3, bool), (11, 13, 5), rate, np.random.default_rng(1)).blocks
        assert hidden.shape == (11, 13, 5) and hidden.sum() == expected


def test_every_block_is_hidden_about_equally_often() -> None:
    rng = np.random.default_rng(2)
    share = np.mean([draw(np.ones(3, bool), (2, 3, 2), 0.75, rng).blocks for _ in range(3000)], axis=0)
    assert np.abs(share - 0.75).max() < 0.04


def test_only_sequences_that_are_present_are_rebuilt_or_lent() -> None:
    rng = np.random.default_rng(3)
    drawn = [draw(np.array([True, False, True]), GRID, 0.8, rng) for _ in range(200)]
    assert {(one.target, one.filler) for one in drawn} == {(0, 2), (2, 0)}


def test_a_study_with_one_sequence_has_nothing_to_lend() -> None:
    one = draw(np.array([False, True, False]), GRID, 0.8, np.random.default_rng(4))
    assert one.target == one.filler == 1


def test_the_same_seed_hides_the_same_blocks() -> None:
    first, again = (draw(np.ones(3, bool), GRID, 0.8, np.random.default_rng([7, 2, 5])) for _ in range(2))
    assert (first.target, first.filler) == (again.target, again.filler)
    assert np.array_equal(first.blocks, again.blocks)


def test_blocks_reach_over_the_far_border() -> None:
    assert block_grid(PADDED, 8) == GRID
    blocks = torch.zeros(1, *GRID, dtype=torch.bool)
    blocks[0, 2, 0, 1] = True
    voxels = spread(blocks, (8, 8, 8), PADDED)
    assert voxels.shape == (1, *PADDED)
    assert voxels[0, 16:, :8, 8:].all() and voxels.sum() == 4 * 8 * 2


def test_a_block_that_cuts_patches_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"block is 6; it must be a multiple .*pretrain.block"):
        check_block(PretrainParams(block=6))


@pytest.mark.parametrize("cross", [False, True])
def test_tokens_are_those_of_volumes_that_are_filled_voxel_by_voxel(cross: bool) -> None:
    model, views = _model(), _views()
    values = model.encoder.decoded(views.volume, views.present)
    found = model.tokens(views, values, cross)
    for row in range(len(views.weight)):
        for tokens, volume in zip(found, _by_voxel(model, views, row, cross), strict=True):
            assert tokens.shape[2:] == TOKENS
            torch.testing.assert_close(
                tokens[row], model.encoder.stem.project(volume[None])[0], rtol=1e-4, atol=1e-4
            )


def test_what_stands_where_a_sequence_is_absent_changes_nothing() -> None:
    model, views = _model().eval(), _views()
    other = views.volume.clone()
    other[~views.present] = 77
    before, after = model(views, True), model(replace(views, volume=other), True)
    torch.testing.assert_close(before.error_a, after.error_a)
    torch.testing.assert_close(before.image_b, after.image_b)


@torch.no_grad()
def test_the_error_is_the_mean_square_over_all_voxels_of_the_volume() -> None:
    model, views = _model().eval(), _views()
    rebuilt = model(views, True)
    for row in range(len(views.weight)):
        view_a, view_b = _by_voxel(model, views, row, cross=True)
        target = decode(views.volume[row], SEQUENCES)[views.target[row]]
        for view, error in ((view_a, rebuilt.error_a[row]), (view_b, rebuilt.error_b[row])):
            top = model.encoder.body.top(model.encoder.stem.project(view[None]))
            painted = model.decoder(top, views.target[row : row + 1])[0, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
            expected = sum(float((a - b) ** 2) for a, b in zip(painted.ravel(), target.ravel(), strict=True))
            assert float(error) == pytest.approx(expected / target.numel(), rel=1e-3)


def test_the_template_learns_in_the_hidden_blocks_of_view_a_alone() -> None:
    model, views = _model(), _views()
    views = replace(views, target=torch.tensor([0, 0, 2, 2]), filler=torch.tensor([1, 0, 0, 1]))
    rebuilt = model(views, True)
    template = model.encoder.stem.template
    by_b = torch.autograd.grad(rebuilt.error_b.sum(), template, retain_graph=True, allow_unused=True)[0]
    assert by_b is None or not by_b.any()
    (by_a,) = torch.autograd.grad(rebuilt.error_a.sum(), template)
    hidden = spread(views.blocks, (8, 8, 8), PADDED)
    for channel, rows in ((0, [0, 1]), (2, [2, 3])):
        learned = hidden[rows].any(dim=0)
        assert by_a[channel][learned].abs().gt(0).float().mean() > 0.9
        assert not by_a[channel][~learned].any()
    assert not by_a[1].any()


def test_every_parameter_has_a_gradient_also_while_the_contrast_does_not_count() -> None:
    model, views = _model(), _views()
    brainmvp_loss(model(views, False), 0.1, 0.0).total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_the_contrast_moves_the_encoder_once_it_counts_and_never_the_decoder() -> None:
    model, views = _model(), _views()
    gradients = []
    for weight in (0.0, 1.0):
        model.zero_grad()
        brainmvp_loss(model(views, True), 0.1, weight).total.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    moved = {name.split(".")[0] for name in gradients[0] if not gradients[0][name].equal(gradients[1][name])}
    assert moved == {"encoder"}


def test_before_another_sequence_is_lent_both_views_are_one() -> None:
    rebuilt = _model().eval()(_views(), False)
    torch.testing.assert_close(rebuilt.error_a, rebuilt.error_b)
    torch.testing.assert_close(rebuilt.image_a, rebuilt.image_b)


def test_the_loss_is_ten_times_view_a_and_view_b_and_the_contrast() -> None:
    rng = torch.Generator().manual_seed(5)
    image_a, image_b = torch.randn(6, 8, generator=rng), torch.randn(6, 8, generator=rng)
    error_a, error_b = torch.rand(6, generator=rng), torch.rand(6, generator=rng)
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0])
    found = brainmvp_loss(Rebuilt(error_a, error_b, image_a, image_b, weight), tau=0.1, contrast_weight=1.0)
    views = np.concatenate([image_a[:5].numpy(), image_b[:5].numpy()])
    image_a, image_b = (
        torch.tensor((image.numpy() - views.mean(axis=0)) / views.std(axis=0)) for image in (image_a, image_b)
    )
    contrast = 0.0
    for one, other in ((image_a, image_b), (image_b, image_a)):
        for i in range(5):
            similar = [float(one[i] @ other[j] / one[i].norm() / other[j].norm()) / 0.1 for j in range(5)]
            contrast += (np.log(np.sum(np.exp(similar))) - similar[i]) / 5 / 2
    expected = 10 * sum(error_a[:5].tolist()) / 5 + sum(error_b[:5].tolist()) / 5 + contrast
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    assert float(found.contrast) == pytest.approx(contrast, rel=1e-5)


def test_a_common_direction_of_all_brains_changes_no_contrast() -> None:
    images = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(6))
    plain, shifted = (
        brainmvp_loss(Rebuilt(torch.ones(5), torch.ones(5), *(images + by), torch.ones(5)), 0.1, 1.0)
        for by in (0.0, 100.0)
    )
    assert float(shifted.contrast) == pytest.approx(float(plain.contrast), rel=1e-3)


def test_one_study_alone_has_a_gradient_that_is_finite() -> None:
    model, views = _model(), _views(num=4)
    one = Views(*(getattr(views, name)[:1] for name in Views.__dataclass_fields__))
    brainmvp_loss(model(one, False), 0.1, 0.0).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_templates_come_first_and_the_contrast_in_the_last_third() -> None:
    params = PretrainParams()
    phases = [phase(params, step, 30) for step in range(30)]
    assert [cross for cross, _ in phases] == [False] * 6 + [True] * 24
    assert [contrast for _, contrast in phases] == [0.0] * 20 + [1.0] * 10


def test_a_draw_becomes_tensors_in_the_order_of_the_batch() -> None:
    blocks = np.zeros((1, 2, 1), bool)
    target, filler, hidden = as_tensors([Draw(0, 2, blocks), Draw(1, 1, ~blocks)])
    assert (target.tolist(), filler.tolist()) == ([0, 1], [2, 1])
    assert hidden.sum(dim=(1, 2, 3)).tolist() == [0, 2]
