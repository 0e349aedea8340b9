"""impuTMAE's masked sequences against what its equations say, written out in loops."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from willis.imaging.shards import decode
from willis.params import PretrainParams
from willis.pretraining.imputmae import Imputed, ImpuTMAE, Masked
from willis.pretraining.masking import spread
from willis.pretraining.method import Studies

pytestmark = pytest.mark.usefixtures("one_thread")

SEQUENCES = ("dwi", "adc", "flair")
SHAPE, PADDED, GRID = (18, 22, 10), (20, 24, 10), (3, 3, 2)
PARAMS = PretrainParams(method="imputmae")


def _studies(present: np.ndarray, seed: int = 0) -> Studies:
    rng = np.random.default_rng(seed)
    num = len(present)
    volume = rng.integers(0, 255, (num, 3, *SHAPE)).astype(np.uint8)
    rngs = [np.random.default_rng([seed, n]) for n in range(num)]
    return Studies(volume, present, np.arange(num), np.ones(num, np.float32), rngs)


def _views() -> Masked:
    """The second study has DWI alone, the third no ADC; the first is asked for FLAIR from the others."""
    present = np.ones((4, 3), bool)
    present[1] = (True, False, False)
    present[2] = (True, False, True)
    views = ImpuTMAE.asked(_studies(present), GRID, 0.75)
    whole = torch.zeros(4, 3, dtype=torch.bool)
    whole[0, 2] = whole[2, 0] = True
    return replace(views, whole=whole)


def _model() -> ImpuTMAE:
    torch.manual_seed(0)
    model = ImpuTMAE(SEQUENCES, SHAPE, block=8)
    model.encoder.stem.template.data.normal_()
    return model


def _hidden(views: Masked) -> torch.Tensor:
    blocks = views.blocks | views.whole[..., None, None, None]
    return torch.stack([spread(blocks[:, c], (8, 8, 8), PADDED) for c in range(3)], dim=1)


def _whole(views: Masked, row: int) -> torch.Tensor:
    values = torch.zeros(3, *PADDED)
    values[:, :18, :22, :10] = decode(views.volume[row], SEQUENCES)
    return values


def test_every_subset_of_the_sequences_is_seen_equally_often_and_never_none() -> None:
    many = replace(_studies(np.ones((1, 3), bool)), present=np.ones((1400, 3), bool),
                   rngs=[np.random.default_rng(n) for n in range(1400)])  # fmt: skip
    views = ImpuTMAE.asked(many, (1, 1, 1), 0.75)
    seen = Counter(tuple(one) for one in (~views.whole).tolist())
    assert len(seen) == 7 and (False, False, False) not in seen
    assert min(seen.values()) > 150 and max(seen.values()) < 250


def test_a_sequence_that_is_absent_is_not_hidden_and_one_alone_is_not_hidden_whole() -> None:
    present = np.array([[True, False, True]] * 50 + [[False, True, False]] * 50)
    views = ImpuTMAE.asked(_studies(present), GRID, 0.75)
    assert not (views.whole & ~views.present).any() and not views.whole[50:].any()
    assert (views.blocks.sum(dim=(2, 3, 4)) == round(0.75 * 18)).all()


@torch.no_grad()
def test_tokens_are_those_of_volumes_that_are_filled_voxel_by_voxel() -> None:
    model, views = _model(), _views()
    values = model.encoder.decoded(views.volume, views.present)
    found, _ = model.tokens(views, values, cross=True)
    hidden, template = _hidden(views).numpy(), model.encoder.stem.template
    for row in range(4):
        seen, whole = template.numpy().copy(), _whole(views, row).numpy()
        for c, x, y, z in np.ndindex(3, *PADDED):
            if views.present[row, c] and not hidden[row, c, x, y, z]:
                seen[c, x, y, z] = whole[c, x, y, z]
        torch.testing.assert_close(
            found[row], model.encoder.stem.project(torch.from_numpy(seen)[None])[0], rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_present_sequences_are_scored_where_they_are_hidden_and_absent_ones_never() -> None:
    model, views = _model(), _views()
    found, hidden = model(views, True), _hidden(views).numpy()
    tokens, _ = model.tokens(views, model.encoder.decoded(views.volume, views.present), cross=True)
    top = model.encoder.body.top(tokens)
    each = []
    for row in range(4):
        whole, errors = _whole(views, row).numpy(), []
        for c in range(3):
            painted = model.decoder(top[row : row + 1], torch.tensor([c]))[0].numpy()
            apart = [(painted[at] - whole[c][at]) ** 2 for at in np.ndindex(*SHAPE) if hidden[row, c][at]]
            expected = np.mean(apart) if views.present[row, c] else 0.0
            assert float(found.error[row, c]) == pytest.approx(expected, rel=1e-3)
            errors += [expected] if views.present[row, c] else []
        each.append(np.mean(errors))
    filling = Imputed(found.error, found.present, torch.tensor([1.0, 1, 1, 0]))
    assert float(model.losses(filling, PARAMS, 1.0).total) == pytest.approx(np.mean(each[:3]), rel=1e-3)


@torch.no_grad()
def test_what_stands_where_a_sequence_is_absent_changes_nothing() -> None:
    model, views = _model(), _views()
    other = views.volume.clone()
    other[~views.present] = 77
    torch.testing.assert_close(model(views, True).error, model(replace(views, volume=other), True).error)


@torch.no_grad()
def test_what_stands_in_a_sequence_that_is_hidden_whole_changes_its_own_score_alone() -> None:
    model, views = _model(), _views()
    other = views.volume.clone()
    other[views.whole] = 77
    before, after = model(views, True).error, model(replace(views, volume=other), True).error
    assert torch.equal((before != after), views.whole)


def test_a_template_learns_where_its_sequence_is_hidden_and_not_where_a_study_lacks_it() -> None:
    model, views = _model(), _views()
    template = model.encoder.stem.template
    (learned,) = torch.autograd.grad(model(views, True).error.sum(), template)
    asked = (_hidden(views) & views.present[..., None, None, None]).any(dim=0)
    assert not learned[~asked].any()
    assert learned[asked].abs().gt(0).float().mean() > 0.9


def test_a_sequence_that_no_study_of_a_batch_has_leaves_no_parameter_without_a_gradient() -> None:
    model, views = _model(), _views()
    present = views.present.clone()
    present[:, 1] = False
    model.losses(model(replace(views, present=present), True), PARAMS, 0.0).total.backward()
    assert [name for name, weights in model.named_parameters() if weights.grad is None] == []
    assert model.decoder.paint.grad is not None and not model.decoder.paint.grad[1].any()


def test_first_steps_may_hide_blocks_alone() -> None:
    model, views = _model(), _views()
    without = replace(views, whole=torch.zeros_like(views.whole))
    torch.testing.assert_close(model(views, False).error, model(without, True).error)
    assert (PARAMS.mask_rate, PARAMS.template_share) == (0.75, 0)
