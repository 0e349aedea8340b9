"""ISDA and weights by entropy: what they say in numpy, in draws and in loops."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.fixtures.killed import KilledError, killed_in
from willis.errors import ParamsError
from willis.models.head import LateHead
from willis.models.isda import ClassSpread
from willis.models.losses import ClassWeights, Scored, total_loss
from willis.params import TrainParams
from willis.training.loop import World, fit

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": 16, "fusion_heads": 4, "contrast_width": 8, "num_workers": 1, "epochs": 2}
OUTCOME = torch.tensor([1.0, 0, 1, 0, torch.nan, 1])
GRADE = torch.tensor([4.0, 1, torch.nan, 2, torch.nan, 6])
WEIGHT = torch.tensor([1.0, 1, 1, 1, 1, 0])


def _scored(spread: torch.Tensor | None, *, ordinal: bool) -> Scored:
    logit = torch.tensor([0.3, -0.2, 1.0, 0.8, 2.0, -1.0])
    offsets = torch.tensor([-3.0, -1.2, 0.0, 0.9, 1.5, 2.8]) if ordinal else None
    return Scored(
        logit, OUTCOME, GRADE, WEIGHT, torch.zeros(6, dtype=torch.bool), None, offsets, None, spread
    )


def _cross_entropy(logit: float, answer: bool) -> float:
    return float(np.log1p(np.exp(-logit if answer else logit)))


@pytest.mark.parametrize("ordinal", [True, False])
def test_each_cut_is_moved_away_from_its_answer_by_half_the_spread_of_the_patients_class(
    ordinal: bool,
) -> None:
    spread, a = torch.tensor([0.4, 1.7]), 0.6
    scored = _scored(spread, ordinal=ordinal)
    each = []
    for i in range(4):
        margin = a / 2 * float(spread[int(OUTCOME[i])])
        cuts = [(0.0, bool(OUTCOME[i]))]
        if ordinal and not GRADE[i].isnan():
            cuts = [(float(scored.offsets[k]), float(GRADE[i]) > k) for k in range(6)]
        losses = [_cross_entropy(float(scored.logit[i]) - d - (2 * yes - 1) * margin, yes) for d, yes in cuts]
        each.append(np.mean(losses))
    found = total_loss(scored, 0.0, 0.0, isda=a).outcome
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)


def test_at_strength_0_and_without_a_spread_the_loss_is_the_plain_one() -> None:
    classes = ClassWeights.balanced(OUTCOME, GRADE)
    plain = total_loss(_scored(None, ordinal=True), 0.0, 0.0, classes).total
    assert torch.equal(
        total_loss(_scored(torch.ones(2), ordinal=True), 0.0, 0.0, classes, isda=0.0).total, plain
    )
    assert torch.equal(total_loss(_scored(None, ordinal=True), 0.0, 0.0, classes, isda=9.0).total, plain)


def test_the_closed_form_bounds_the_mean_loss_over_embeddings_drawn_along_the_class() -> None:
    rng = np.random.default_rng(0)
    root, w, a = rng.normal(size=(5, 5)), rng.normal(size=5), 0.7
    embedding = rng.normal(size=5)
    drawn = embedding + np.sqrt(a) * rng.normal(size=(40_000, 5)) @ root.T
    v = float(w @ root @ root.T @ w)
    for outcome in (0.0, 1.0):
        logit = torch.tensor([float(w @ embedding)])
        spread = torch.tensor([v, 0.0] if outcome == 0 else [0.0, v])
        one = Scored(logit, torch.tensor([outcome]), torch.tensor([torch.nan]), torch.ones(1),
                     torch.zeros(1, dtype=torch.bool), None, None, None, spread)  # fmt: skip
        closed = float(total_loss(one, 0.0, 0.0, isda=a).outcome)
        sampled = np.mean(np.log1p(np.exp((1 - 2 * outcome) * drawn @ w)))
        assert sampled <= closed < sampled + a / 2 * v
        assert closed > float(total_loss(one, 0.0, 0.0, isda=0.0).outcome)


def test_the_online_covariance_is_that_of_all_rows_together() -> None:
    rng = np.random.default_rng(1)
    spread, seen = ClassSpread(4), {0: [], 1: []}
    for size in (3, 1, 8, 5):
        rows = rng.normal(size=(size, 4)) * [1, 2, 3, 4] + 1
        outcome, weight = rng.integers(0, 2, size).astype(float), np.ones(size)
        outcome[-1], weight[0] = np.nan if size > 3 else outcome[-1], 0.0 if size > 3 else 1.0
        spread.take_in(*(torch.tensor(values, dtype=torch.float32) for values in (rows, outcome, weight)))
        for c in (0, 1):
            seen[c] += list(rows[(outcome == c) & (weight > 0)])
    w = rng.normal(size=4)
    for c in (0, 1):
        covariance = np.cov(np.array(seen[c]).T, bias=True)
        assert int(spread.count[c]) == len(seen[c])
        np.testing.assert_allclose(spread.covariance[c].numpy(), covariance, rtol=1e-4, atol=1e-4)
        found = spread.along(torch.tensor(w, dtype=torch.float32))[c]
        assert float(found) == pytest.approx(w @ covariance @ w, rel=1e-4)


def test_a_run_with_isda_that_is_cut_off_ends_as_if_nothing_had_happened(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = TrainParams(isda=0.5, **SMALL)  # type: ignore[arg-type]
    whole = fit(tiny_job(tiny_ingest, tmp_path / "whole", params), World())
    assert int(whole.network["spread.count"].sum()) > 90 and whole.network["spread.covariance"].any()

    job = tiny_job(tiny_ingest, tmp_path / "cut", params)
    with pytest.raises(KilledError):
        fit(job, World(), killed_in(1))
    resumed = fit(job, World())
    for name, value in whole.network.items():
        torch.testing.assert_close(resumed.network[name], value, rtol=0, atol=0, msg=name)


def test_isda_in_late_fusion_is_refused(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    late = TrainParams(isda=0.5, fusion="late", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ParamsError, match=r"isda is 0.5, .*'late' .*train.isda to 0"):
        tiny_job(tiny_ingest, tmp_path, late)


def test_by_entropy_a_prediction_that_is_unsure_counts_less() -> None:
    head = LateHead(16, 8, 0.0, 0.5, "entropy")
    head.log_weight.data = torch.tensor([0.3, -0.2, 0.1])
    logits = torch.tensor([[3.0, 0.1, -1.0], [-2.0, 4.0, 0.0]])
    present = torch.tensor([[True, True, True], [True, False, True]])
    found = head.weights(present, logits)
    for row in range(2):
        shares = []
        for m in range(3):
            p = 1 / (1 + np.exp(-float(logits[row, m])))
            unsure = -p * np.log(p) - (1 - p) * np.log(1 - p)
            shares.append(np.exp(float(head.log_weight[m].detach()) - unsure) * bool(present[row, m]))
        np.testing.assert_allclose(found[row].detach().numpy(), np.array(shares) / sum(shares), rtol=1e-5)
    learned = _with_learned_weights(head)
    torch.testing.assert_close(learned.weights(present, logits)[0], head.log_weight.softmax(dim=0))


def test_no_head_is_taught_to_be_sure_in_order_to_be_heard() -> None:
    head = LateHead(16, 8, 0.0, 0.5, "entropy")
    logits = torch.randn(4, 3, requires_grad=True)
    weights = head.weights(torch.ones(4, 3, dtype=torch.bool), logits)
    assert weights.requires_grad and torch.autograd.grad(weights[:, 0].sum(), logits, allow_unused=True) == (
        None,
    )


def _with_learned_weights(head: LateHead) -> LateHead:
    """The same head with learned weights alone."""
    other = LateHead(16, 8, 0.0, 0.5)
    other.load_state_dict(head.state_dict())
    return other
