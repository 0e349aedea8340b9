"""Class weights: both outcomes weigh alike, and the probability is still that of the population."""

import math

import numpy as np
import pytest
import torch

from willis.evaluation.calibration import fit_temperature
from willis.models.decision import tempered
from willis.models.losses import ClassWeights, outcome_loss

OFFSETS = torch.tensor([-2.0, -0.7, 0.0, 0.4, 1.1, 3.0])


def _cohort(n: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, outcome and grade of patients of whom one in eight does badly."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, n)
    grade = rng.binomial(6, 0.08 + 0.07 * x).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy((grade > 2).astype(np.float32)), torch.from_numpy(grade)


def _slow_loss(logit, outcome, grade, weight, offsets, classes) -> float:
    """Loops over patients and cuts."""
    total, count = 0.0, 0.0
    for row in range(len(logit)):
        if math.isnan(outcome[row]):
            continue
        known = offsets is not None and not math.isnan(grade[row])
        terms = []
        for k in range(6) if known else [2]:
            yes = grade[row] > k if known else outcome[row] == 1
            c_yes, c_no = float(classes.yes[k]), float(classes.no[k])
            at = float(logit[row]) - (float(offsets[k]) if known else 0.0) + math.log(c_yes / c_no)
            p = 1 / (1 + math.exp(-at))
            terms.append(-c_yes * math.log(p) if yes else -c_no * math.log(1 - p))
        total += float(weight[row]) * sum(terms) / len(terms)
        count += float(weight[row])
    return total / count


def _fitted(parameters: list[torch.Tensor], loss) -> None:
    """Newton's way down to where the gradient is 0."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def test_the_two_answers_of_every_cut_weigh_alike_and_one_in_the_mean() -> None:
    _, outcome, grade = _cohort()
    classes = ClassWeights.balanced(outcome, grade)
    for k in range(6):
        yes = [float(classes.yes[k]) for g in grade if g > k]
        no = [float(classes.no[k]) for g in grade if g <= k]
        if yes:
            assert sum(yes) == pytest.approx(sum(no), rel=1e-5)
        assert (sum(yes) + sum(no)) / len(grade) == pytest.approx(1.0, rel=1e-5)


def test_a_patient_of_whom_only_poor_or_good_is_known_counts_at_that_cut_alone() -> None:
    grade = torch.tensor([0.0, 3.0, 5.0, torch.nan, torch.nan, torch.nan])
    outcome = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, torch.nan])
    classes = ClassWeights.balanced(outcome, grade)
    assert float(classes.yes[2]) == pytest.approx(5 / 4) and float(classes.no[2]) == pytest.approx(5 / 6)
    assert float(classes.yes[3]) == pytest.approx(3 / 2) and float(classes.no[3]) == pytest.approx(3 / 4)


def test_a_cut_that_has_one_answer_alone_is_left_as_it_is() -> None:
    grade = torch.tensor([0.0, 1.0, 3.0])
    classes = ClassWeights.balanced((grade > 2).float(), grade)
    assert classes.yes[4:].tolist() == classes.no[4:].tolist() == [1.0, 1.0]
    assert classes.shift()[4:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_the_weighted_loss_is_what_loops_over_patients_and_cuts_give(offsets: torch.Tensor | None) -> None:
    _, outcome, grade = _cohort(40)
    outcome[3], grade[3] = torch.nan, torch.nan
    grade[5] = torch.nan
    weight = (torch.arange(40) % 7 > 0).float()
    logit = torch.linspace(-3, 2, 40)
    classes = ClassWeights.balanced(outcome, grade)
    ours = outcome_loss(logit, outcome, grade, weight, offsets, classes)
    slow = _slow_loss(logit, outcome, grade, weight, offsets, classes)
    assert float(ours) == pytest.approx(slow, rel=1e-5)


def test_rows_that_only_fill_the_batch_change_neither_loss_nor_gradient() -> None:
    _, outcome, grade = _cohort(20)
    classes = ClassWeights.balanced(outcome, grade)
    logit = torch.linspace(-2, 2, 20, requires_grad=True)
    real = torch.arange(20) < 13
    outcome_loss(logit, outcome, grade, real.float(), OFFSETS, classes).backward()
    short = logit.detach()[:13].requires_grad_()
    outcome_loss(short, outcome[:13], grade[:13], torch.ones(13), OFFSETS, classes).backward()
    torch.testing.assert_close(logit.grad[:13], short.grad)
    assert logit.grad[13:].abs().sum() == 0


def test_a_model_that_can_express_the_truth_answers_with_the_shares_of_the_population() -> None:
    x, outcome, grade = _cohort()
    classes, level = ClassWeights.balanced(outcome, grade), torch.zeros(4, requires_grad=True)
    _fitted([level], lambda: outcome_loss(level[x], outcome, grade, torch.ones(len(x)), None, classes))
    for group in range(4):
        share = float(outcome[x == group].mean())
        assert float(level[group].detach().sigmoid()) == pytest.approx(share, abs=1e-3)


def test_every_cut_of_the_rankin_scale_is_brought_back_to_its_own_share() -> None:
    _, outcome, grade = _cohort(4000)
    classes = ClassWeights.balanced(outcome, grade)
    level, cuts = torch.zeros(1, requires_grad=True), torch.zeros(6, requires_grad=True)
    seen = [k for k in range(6) if (grade > k).any()]

    def loss() -> torch.Tensor:
        offsets = cuts - cuts[2]
        return outcome_loss(
            level.expand(len(grade)), outcome, grade, torch.ones(len(grade)), offsets, classes
        )

    _fitted([level, cuts], loss)
    chances = (level - cuts + cuts[2]).detach().sigmoid()
    for k in seen:
        assert float(chances[k]) == pytest.approx(float((grade > k).float().mean()), abs=1e-3)


def test_without_the_correction_probabilities_are_far_off_and_no_temperature_brings_them_back() -> None:
    x, outcome, grade = _cohort(4000)
    classes, level = ClassWeights.balanced(outcome, grade), torch.zeros(4, requires_grad=True)
    _fitted([level], lambda: outcome_loss(level[x], outcome, grade, torch.ones(len(x)), None, classes))
    ours = level.detach()[x].sigmoid().numpy()
    uncorrected = (level.detach()[x] + classes.shift()[2]).sigmoid().numpy()
    y = outcome.numpy()
    assert ours.mean() == pytest.approx(y.mean(), abs=1e-3)
    assert uncorrected.mean() > 2 * y.mean()
    best = tempered(uncorrected, fit_temperature(y, uncorrected))
    assert _log_loss(y, best) > _log_loss(y, ours) + 0.02


def _log_loss(outcome: np.ndarray, probability: np.ndarray) -> float:
    return float(-np.mean(np.where(outcome == 1, np.log(probability), np.log(1 - probability))))
