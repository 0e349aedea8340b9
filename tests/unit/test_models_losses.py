"""The loss: each fault of the published design, and that ours does not have it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from willis.models.fusion import FUSIONS, FusionShape, LogScale, Pair
from willis.models.losses import align_loss, contrast_loss, outcome_loss
from willis.training.metrics import effective_rank, pairwise_cosine

SCALE = torch.tensor(1 / 0.07)


def _slow_contrast(image: np.ndarray, text: np.ndarray, valid: np.ndarray, tau: float) -> float:
    """Loops over pairs, rows that are not valid taken out beforehand."""
    image, text = image[valid], text[valid]
    terms = []
    for one, other in ((image, text), (text, image)):
        for i in range(len(one)):
            scores = [one[i] @ other[j] / np.linalg.norm(one[i]) / np.linalg.norm(other[j]) / tau
                      for j in range(len(other))]  # fmt: skip
            terms.append(math.log(sum(math.exp(s) for s in scores)) - scores[i])
    return 0.5 * float(np.mean(terms[: len(image)]) + np.mean(terms[len(image) :]))


def _pair(n: int, seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    tokens = [torch.randn(n, 8, requires_grad=True) for _ in range(6)]
    return Pair(*tokens, scale=SCALE)


def test_contrast_is_what_loops_over_pairs_give() -> None:
    pair, valid = _pair(9), torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
    ours = contrast_loss(pair.image, pair.text, valid, SCALE)
    slow = _slow_contrast(pair.image.detach().numpy(), pair.text.detach().numpy(), valid.numpy(), 0.07)
    assert float(ours) == pytest.approx(slow, rel=1e-5)


def test_a_perfect_batch_of_64_has_almost_no_contrast_left_where_chance_has_4_16() -> None:
    perfect = torch.eye(64)
    valid = torch.ones(64, dtype=torch.bool)
    start = LogScale(0.07)()
    assert float(contrast_loss(perfect, perfect, valid, start)) < 0.01
    constant = torch.ones(64, 64)
    assert float(contrast_loss(constant, constant, valid, start)) == pytest.approx(math.log(64), rel=1e-4)
    published = torch.tensor(1 / 1.3)
    assert float(contrast_loss(perfect, perfect, valid, published)) == pytest.approx(3.40, abs=0.05)


def test_the_scale_starts_at_one_over_tau_and_is_held_at_100() -> None:
    scale = LogScale(0.07)
    assert float(scale()) == pytest.approx(1 / 0.07, rel=1e-5)
    scale.log_scale.data.fill_(10.0)
    assert float(scale()) == 100.0


def test_rows_without_a_pair_are_in_neither_alignment_loss() -> None:
    pair, valid = _pair(6), torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.bool)
    loss = contrast_loss(pair.image, pair.text, valid, SCALE) + align_loss(pair, valid)
    loss.backward()
    changed = replace(pair, image=pair.image + 5 * ~valid[:, None], text_token=pair.text_token.flip(0))
    changed = replace(changed, text_token=torch.where(valid[:, None], pair.text_token, 9.0))
    again = contrast_loss(changed.image, changed.text, valid, SCALE) + align_loss(changed, valid)
    torch.testing.assert_close(again, loss)
    for tensor in (pair.image, pair.text, pair.text_from_image, pair.image_from_text):
        assert tensor.grad[~valid].abs().sum() == 0 and tensor.grad[valid].abs().sum() > 0


@pytest.mark.parametrize("num_valid", [0, 1])
def test_fewer_than_two_pairs_give_a_contrast_of_zero_that_is_still_attached(num_valid: int) -> None:
    pair = _pair(4)
    loss = contrast_loss(pair.image, pair.text, torch.arange(4) < num_valid, SCALE)
    loss.backward()
    assert float(loss) == 0.0 and pair.image.grad.isfinite().all()


def test_alignment_targets_carry_no_gradient() -> None:
    pair = _pair(5)
    align_loss(pair, torch.ones(5, dtype=torch.bool)).backward()
    assert pair.text_token.grad is None and pair.image_token.grad is None
    assert pair.text_from_image.grad.abs().sum() > 0 and pair.image_from_text.grad.abs().sum() > 0


def test_alignment_is_the_mean_of_both_directions() -> None:
    pair = _pair(5)
    expected = [
        0.5 * (1 - float(normalize(pair.text_from_image[i], dim=0) @ normalize(pair.text_token[i], dim=0)))
        + 0.5 * (1 - float(normalize(pair.image_from_text[i], dim=0) @ normalize(pair.image_token[i], dim=0)))
        for i in range(5)
    ]
    assert float(align_loss(pair, torch.ones(5, dtype=torch.bool))) == pytest.approx(
        np.mean(expected), abs=1e-5
    )


def test_training_on_alignment_alone_does_not_collapse() -> None:
    torch.manual_seed(0)
    fusion = FUSIONS["vdafm_pooled"](FusionShape(32, 16, 1, 4), 0.0, 0.07)
    shared = torch.randn(96, 4)
    image = shared @ torch.randn(4, 32) + 0.5 * torch.randn(96, 32)
    text = shared @ torch.randn(4, 32) + 0.5 * torch.randn(96, 32)
    valid = torch.ones(96, dtype=torch.bool)
    start = fusion(image, text).pair
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-3)
    for _ in range(150):
        loss = align_loss(fusion(image, text).pair, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = fusion(image, text).pair
    assert float(loss) < 0.5 * float(align_loss(start, valid))
    for name in ("image_token", "text_token"):
        tokens = getattr(end, name).detach()
        assert pairwise_cosine(tokens) < 0.8, name
        assert effective_rank(tokens) > 3.0, name


def test_rows_without_an_outcome_or_weight_are_not_in_the_outcome_loss() -> None:
    logit = torch.tensor([0.3, -2.0, 5.0, 1.0])
    outcome = torch.tensor([1.0, torch.nan, 0.0, 0.0])
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(1.0))) / 2
    assert float(outcome_loss(logit, outcome, outcome, weight, None)) == pytest.approx(expected, rel=1e-5)


def test_the_ordinal_loss_is_the_mean_of_six_questions_per_patient() -> None:
    logit, grade = [0.3, -2.0, 1.5, 0.0], [0, 3, 6, 2]
    offsets = [-2.0, -0.7, 0.0, 0.4, 1.1, 3.0]
    chances = [[1 / (1 + math.exp(-(x - d))) for d in offsets] for x in logit]
    terms = [
        -math.log(p if g > k else 1 - p)
        for row, g in zip(chances, grade, strict=True)
        for k, p in enumerate(row)
    ]
    outcome = torch.tensor([float(g > 2) for g in grade])
    ours = outcome_loss(
        torch.tensor(logit), outcome, torch.tensor(grade).float(), torch.ones(4), torch.tensor(offsets)
    )
    assert float(ours) == pytest.approx(sum(terms) / 24, rel=1e-5)


def test_a_patient_of_whom_only_poor_or_good_is_known_is_asked_that_alone() -> None:
    known = torch.tensor([1.0])
    ours = outcome_loss(
        torch.tensor([0.3]), known, torch.tensor([torch.nan]), known, torch.linspace(-2, 3, 6)
    )
    assert float(ours) == pytest.approx(math.log1p(math.exp(-0.3)), rel=1e-5)


def test_effective_rank_counts_equal_directions_and_one_for_a_point() -> None:
    assert effective_rank(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(4.0)
    assert effective_rank(torch.ones(8, 4)) == 1.0


def test_pairwise_cosine_is_the_mean_over_pairs() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    assert pairwise_cosine(rows) == pytest.approx(1 / 3)
