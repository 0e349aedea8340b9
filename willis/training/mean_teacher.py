"""Semi-supervision by SRC-MT: agree with the average of one's own weights, on patients and on pairs of them.

The teacher is the exponential average of the student over its steps. It sees each batch under another draw of
modality, sequence and network dropout. The student shall predict what it predicts, and find those patients
alike that it finds alike; no outcome is needed for that (docs/method.md, eq. 32 to 36).

Reference:
    Liu et al., IEEE Trans Med Imaging 39:3429, 2020 (arXiv 2005.07377); the averaged teacher is that of
    Tarvainen and Valpola, NeurIPS 2017 (arXiv 1703.01780).
"""

import math
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.swa_utils import get_ema_multi_avg_fn

from willis.models.losses import Losses, gather_rows
from willis.models.network import Batch, Output, TrimodalNetwork
from willis.params import TrainParams
from willis.training.dataset import Cases, Share, with_dropout


@dataclass(frozen=True)
class Answers:
    """What student and teacher say of the same cases.

    Attributes:
        logit: the student's, of a poor outcome.
        embedding: the student's fused vector.
        teacher_logit: the teacher's; neither of its two carries a gradient.
        teacher_embedding: the teacher's fused vector.
        weight: 0 for a row that only fills the batch.
    """

    logit: Float[Tensor, " B"]
    embedding: Float[Tensor, "B R"]
    teacher_logit: Float[Tensor, " B"]
    teacher_embedding: Float[Tensor, "B R"]
    weight: Float[Tensor, " B"]

    @classmethod
    def of(cls, student: Output, teacher: Output, weight: Float[Tensor, " B"]) -> Self:
        """Put the two outputs for one batch side by side."""
        return cls(student.logit, student.embedding, teacher.logit, teacher.embedding, weight)

    def joined(self) -> Self:
        """Those of all ranks' cases together; the same on every rank."""
        return type(self)(*gather_rows([getattr(self, field.name) for field in fields(self)]))


class MeanTeacher:
    """The average of a student's weights, and what it says of a batch."""

    def __init__(self, student: TrimodalNetwork, cases: Cases, params: TrainParams) -> None:
        self.network = deepcopy(student).requires_grad_(False)
        self.cases, self.params = cases, params

    @torch.no_grad()
    def answer(self, share: Share, batch: Batch, epoch: int) -> Output:
        """What it says of the cases in `batch`, seen its own way.

        Args:
            share: which rows of the cases they are.
            batch: as the student sees them, on the student's device.
            epoch: other epochs drop other modalities and sequences.
        """
        output: Output = self.network(self._own_view(share, batch, epoch))
        return output

    def follow(self, student: nn.Module, step: int) -> None:
        """Take in the student as its optimiser left it.

        The decay rises with the steps, or the untrained start would weigh in the average for long: up to
        1 / (1 - teacher_decay) steps it is the plain mean of all students so far.

        Args:
            student: of the same architecture.
            step: from 0, over all epochs.
        """
        decay = min(1 - 1 / (step + 1), self.params.teacher_decay)
        get_ema_multi_avg_fn(decay)(list(self.network.parameters()), list(student.parameters()), step)

    def _own_view(self, share: Share, batch: Batch, epoch: int) -> Batch:
        whole = replace(
            batch,
            modality_present=torch.from_numpy(self.cases.modality_present[share.rows]),
            sequence_present=torch.from_numpy(self.cases.arrays.sequence_present[share.rows]),
        )
        return with_dropout(whole, share, self.params, epoch, view=1).to(batch.weight.device)


def ramp(params: TrainParams, step: int, steps: int) -> float:
    """Weight of the consistencies: lambda_max exp(-5 (1 - t/T)^2) up to T, then lambda_max.

    An untrained teacher has nothing to teach; its word counts as it learns.

    Args:
        params: `lambda_consistency` is lambda_max, `consistency_ramp_share` the share of steps up to T.
        step: t, from 0, over all epochs.
        steps: in the whole run.
    """
    rise = params.consistency_ramp_share * steps
    left = max(0.0, 1 - step / rise) if rise else 0.0
    return params.lambda_consistency * math.exp(-5 * left**2)


def with_consistency(losses: Losses, answers: Answers, weight: float) -> Losses:
    """L + lambda(t) (L_pred + L_rel), over the rows given (see `Answers.joined`)."""
    consistency, relation = prediction_consistency(answers), relation_consistency(answers)
    total = losses.total + weight * (consistency + relation)
    return replace(losses, total=total, consistency=consistency, relation=relation)


def prediction_consistency(answers: Answers) -> Float[Tensor, ""]:
    """Mean over real rows of the squared difference between the student's P(poor) and the teacher's."""
    apart = answers.logit.float().sigmoid() - answers.teacher_logit.float().sigmoid()
    return _mean(apart.square(), answers.weight)


def relation_consistency(answers: Answers) -> Float[Tensor, ""]:
    """Mean over real rows of the squared distance between both networks' rows of `relations`.

    Rows have unit length, so this is between 0 and 4 whatever the size of the batch.
    """
    apart = relations(answers.embedding, answers.weight) - relations(
        answers.teacher_embedding, answers.weight
    )
    return _mean(apart.square().sum(dim=-1), answers.weight)


def relations(embedding: Float[Tensor, "B R"], weight: Float[Tensor, " B"]) -> Float[Tensor, "B B"]:
    """How alike any two cases are: the Gram matrix of their embeddings, each row brought to unit length.

    Args:
        embedding: fused vectors of the batch.
        weight: 0 for rows that only fill it; their rows and columns are 0.
    """
    real = embedding.float() * weight[:, None]
    return normalize(real @ real.T, dim=-1)


def _mean(each: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    return (each * weight).sum() / weight.sum().clamp(min=1e-9)
