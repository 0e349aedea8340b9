"""MICS against what its equations say, written out in loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from willis.imaging.shards import decode
from willis.params import PretrainParams
from willis.pretraining.masking import spread
from willis.pretraining.method import Studies
from willis.pretraining.mics import Bank, Matched, Mics, Pairs, consistency_loss, mics_loss

pytestmark = pytest.mark.usefixtures("one_thread")

SEQUENCES = ("dwi", "adc", "flair")
SHAPE, PADDED, GRID = (18, 22, 10), (20, 24, 10), (3, 3, 2)
PARAMS = PretrainParams(method="mics")


def _pairs(num: int = 4) -> Pairs:
    """Studies that lack sequences: the second has DWI alone, the third no ADC."""
    rng = np.random.default_rng(0)
    present = np.ones((num, 3), bool)
    present[1] = (True, False, False)
    present[2] = (True, False, True)
    studies = Studies(
        rng.integers(0, 255, (num, 3, *SHAPE)).astype(np.uint8), present, np.arange(num) + 40,
        np.ones(num, np.float32), [np.random.default_rng([5, n]) for n in range(num)],
    )  # fmt: skip
    return Mics.asked(studies, GRID, 0.75)


def _model(bank: int = 12) -> Mics:
    torch.manual_seed(0)
    model = Mics(SEQUENCES, SHAPE, block=8, bank=bank)
    model.encoder.stem.template.data.normal_()
    return model


def _matched(seed: int = 0, num: int = 5) -> Matched:
    """The last row only fills the batch."""
    torch.manual_seed(seed)
    weight = torch.ones(num)
    weight[-1] = 0
    row = torch.tensor([11, 7, 30, 2, 11])[:num]
    channel = torch.randint(3, (num, 2))
    return Matched(torch.rand(num, 2), torch.randn(num, 2, 6), torch.randn(num, 2, 6),
                   torch.randn(num, 2, 3), channel, row, weight)  # fmt: skip


def _bank() -> Bank:
    """Six places, two of them empty, one with an old key of study 7."""
    keys = torch.nn.functional.normalize(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))
    return Bank(keys, torch.tensor([5, 7, 9, 21, -1, -1]))


def _units(values: np.ndarray) -> np.ndarray:
    """Both views of the first four studies, about their mean, in units of their spread, at length 1."""
    flat = values[:4].reshape(8, -1)
    apart = (values[:4] - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + 1e-6)
    return apart / np.linalg.norm(apart, axis=-1, keepdims=True)


def _slow_consistency(matched: Matched, bank: Bank, tau: float, soft: float) -> float:
    query, key = _units(matched.query.double().numpy()), _units(matched.key.double().numpy())
    losses = []
    for one, other in ((0, 1), (1, 0)):
        for i in range(4):
            keys = [key[j, other] for j in range(4)]
            keys += [bank.keys[k].double().numpy() for k in (0, 1, 2, 3) if bank.rows[k] != matched.row[i]]
            asked = np.exp([query[i, one] @ each / tau for each in keys])
            alike = np.exp([key[i, one] @ each / tau for each in keys])
            for j in range(len(keys)):
                target = soft * alike[j] / alike.sum() + (1 - soft) * (j == i)
                losses.append(-target * np.log(asked[j] / asked.sum()))
    return float(np.sum(losses)) / 8


def test_two_sequences_that_the_study_has_are_paired_and_one_alone_with_itself() -> None:
    pairs = _pairs()
    assert pairs.row.tolist() == [40, 41, 42, 43]
    assert pairs.channel[1].tolist() == [0, 0] and set(pairs.channel[2].tolist()) == {0, 2}
    assert all(one != other for one, other in pairs.channel[[0, 3]].tolist())
    assert pairs.blocks.sum(dim=(1, 2, 3)).tolist() == [round(0.75 * 18)] * 4


@torch.no_grad()
def test_each_sequence_is_shown_alone_and_scored_where_it_is_hidden() -> None:
    model, pairs = _model(), _pairs()
    found, template = model(pairs, True), model.encoder.stem.template
    hidden = spread(pairs.blocks, (8, 8, 8), PADDED)
    asked = hidden.numpy()
    for n, (row, view) in enumerate(np.ndindex(4, 2)):
        channel = pairs.channel[row, view]
        target = torch.zeros(PADDED)
        target[:18, :22, :10] = decode(pairs.volume[row], SEQUENCES)[channel]
        seen = template.clone()
        seen[channel] = torch.where(hidden[row], template[channel], target)
        top = model.encoder.body.top(model.encoder.stem.project(seen[None]))
        painted, whole = model.decoder(top, channel[None])[0].numpy(), target.numpy()
        apart = [(painted[at] - whole[at]) ** 2 for at in np.ndindex(*SHAPE) if asked[row][at]]
        assert float(found.error[row, view]) == pytest.approx(np.mean(apart), rel=1e-3), n
        query = model.project(model.encoder.body.pooled(top))[0]
        torch.testing.assert_close(found.query[row, view], query, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_keys_are_those_of_the_slow_encoder_which_sees_the_sequence_whole() -> None:
    model, pairs = _model(), _pairs()
    for weights in model.slow_encoder.parameters():
        weights.add_(0.01)
    found = model(pairs, True)
    for row, view in np.ndindex(4, 2):
        shown = torch.arange(3)[None] == pairs.channel[row, view]
        key = model.slow_project(model.slow_encoder(pairs.volume[row : row + 1], shown))[0]
        torch.testing.assert_close(found.key[row, view], key, rtol=1e-3, atol=1e-4)


def test_before_sequences_stand_for_one_another_a_sequence_is_its_own_pair() -> None:
    found = _model()(_pairs(), False)
    torch.testing.assert_close(found.query[:, 0], found.query[:, 1])
    assert torch.equal(found.channel[:, 0], found.channel[:, 1])


def test_consistency_is_what_loops_over_batch_and_bank_give() -> None:
    matched, bank = _matched(), _bank()
    for tau, soft in ((0.07, 0.4), (0.5, 0.0), (0.5, 1.0)):
        found = float(consistency_loss(matched, bank, tau, soft))
        assert found == pytest.approx(_slow_consistency(matched, bank, tau, soft), rel=1e-4)


def test_an_empty_bank_holds_nobody() -> None:
    matched = _matched()
    empty = Bank(torch.zeros(3, 6), torch.full((3,), -1))
    none = Bank(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    assert float(consistency_loss(matched, empty, 0.07, 0.4)) == pytest.approx(
        float(consistency_loss(matched, none, 0.07, 0.4)), rel=1e-6
    )


def test_the_loss_is_reconstruction_and_consistency_and_a_tenth_of_the_discriminator() -> None:
    matched, bank = _matched(), _bank()
    found = mics_loss(matched, bank, PARAMS, contrast=1.0)
    told = []
    for i, view in np.ndindex(4, 2):
        odds = np.exp(matched.told[i, view].double().numpy())
        told.append(-np.log(odds[matched.channel[i, view]] / odds.sum()))
    masked, consistency = float(matched.error[:4].mean()), _slow_consistency(matched, bank, 0.07, 0.4)
    expected = {"masked": masked, "consistency": consistency, "align": float(np.mean(told))}
    assert {name: float(term) for name, term in found.terms().items()} == pytest.approx(expected, rel=1e-4)
    assert float(found.total) == pytest.approx(masked + consistency + 0.1 * np.mean(told), rel=1e-4)
    assert float(mics_loss(matched, bank, PARAMS, contrast=0.0).total) == pytest.approx(masked, rel=1e-6)


def test_the_encoder_is_pushed_to_hide_what_the_discriminator_is_taught_to_find() -> None:
    model, pairs = _model(), _pairs()
    found = model(pairs, True)
    seeks, hides = model.discriminator[0].weight, model.encoder.body.middle.weight
    align = mics_loss(found, Bank(model.bank_keys, model.bank_rows), PARAMS, 1.0).align
    reversed_too = torch.autograd.grad(align, (seeks, hides), retain_graph=True)
    features: list[torch.Tensor] = []
    handle = model.project.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    model(pairs, True)
    handle.remove()
    plain = cross_entropy(model.discriminator(features[0]), pairs.channel.flatten())
    straight = torch.autograd.grad(plain, (seeks, hides))
    torch.testing.assert_close(reversed_too[0], straight[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(reversed_too[1], -straight[1], rtol=1e-3, atol=1e-6)


def test_everything_that_learns_has_a_gradient_also_while_no_view_is_compared() -> None:
    model = _model()
    model.losses(model(_pairs(), False), PARAMS, 0.0).total.backward()
    without = {name.split(".")[0] for name, weights in model.named_parameters() if weights.grad is None}
    assert without == {"slow_encoder", "slow_project"}


def test_the_slow_copy_follows_by_a_two_hundredth_per_step() -> None:
    model, pairs = _model(), _pairs()
    found = model(pairs, True)
    for weights in model.encoder.parameters():
        weights.data.add_(1.0)
    before = {name: value.clone() for name, value in model.slow_encoder.state_dict().items()}
    model.follow(found, PARAMS)
    for name, value in model.encoder.state_dict().items():
        expected = 0.995 * before[name] + 0.005 * value
        torch.testing.assert_close(model.slow_encoder.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_keys_enter_the_bank_by_study_and_leave_it_oldest_first() -> None:
    model, matched = _model(bank=6), replace(_matched(), query=torch.zeros(5, 2, 128))
    matched = replace(matched, key=torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(1)))
    pair = replace(matched, weight=torch.tensor([1.0, 1, 0, 0, 0]))  # studies 11 and 7 count
    model.follow(pair, PARAMS)
    assert model.bank_rows.tolist() == [7, 7, 11, 11, -1, -1]
    keys = pair.units("key")
    torch.testing.assert_close(
        model.bank_keys[:4], torch.stack([keys[1, 0], keys[1, 1], keys[0, 0], keys[0, 1]])
    )
    model.follow(replace(matched, weight=torch.tensor([0.0, 0, 1, 1, 0])), PARAMS)  # 30 and 2
    assert model.bank_rows.tolist() == [30, 30, 11, 11, 2, 2]
    model.follow(matched, PARAMS)  # eight keys for six places: the last ones stay
    assert sorted(model.bank_rows.tolist()) == [7, 7, 11, 11, 30, 30]


def test_a_method_has_the_values_of_its_paper_unless_others_are_given() -> None:
    assert (PARAMS.mask_rate, PARAMS.tau, PARAMS.template_share, PARAMS.contrast_share) == (0.75, 0.07, 0, 1)
    assert (PARAMS.momentum, PARAMS.soft_targets, PARAMS.lambda_discriminator) == (0.995, 0.4, 0.1)
    assert PretrainParams(method="mics", mask_rate=0.6, tau=0.2).tau == 0.2
    old = PretrainParams(method="brainmvp")
    assert (old.mask_rate, old.tau, old.template_share, old.contrast_share) == (0.8, 0.1, 0.2, 1 / 3)
