"""What is watched while training: discrimination on validation, and whether embeddings collapse."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import normalize


class EpochRecord(BaseModel):
    """One line of metrics.jsonl.

    Attributes:
        val_auc: None when validation holds one class only.
        image_cosine: mean cosine between two patients' image tokens; near 1 means collapse.
        image_rank: effective rank of the image tokens; near 1 means collapse.
        consistency_loss: of the student's and the teacher's predictions; None without semi-supervision.
        relation_loss: of their relations between patients; None without semi-supervision.
        imputation_loss: of present modalities guessed from the others; None where nothing is guessed.
        subsets_loss: of the outcome given each smaller set of modalities; None where that is not asked.
        data_wait_share: share of the epoch's training time spent waiting for batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    outcome_loss: float
    contrast_loss: float
    align_loss: float
    consistency_loss: float | None = None
    relation_loss: float | None = None
    imputation_loss: float | None = None
    subsets_loss: float | None = None
    val_loss: float
    val_auc: float | None
    image_cosine: float | None = None
    image_rank: float | None = None
    text_cosine: float | None = None
    text_rank: float | None = None
    temperature: float | None = None
    learning_rate: float
    gradient_norm: float
    num_patients: int
    seconds: float
    data_wait_share: float


def auc(outcome: npt.NDArray[np.float32], score: npt.NDArray[np.float32]) -> float | None:
    """Area under the ROC curve by ranks, ties counted half; None with one class only."""
    poor, good = score[outcome == 1], score[outcome == 0]
    if not len(poor) or not len(good):
        return None
    good = np.sort(good)
    below = np.searchsorted(good, poor, side="left")
    upto = np.searchsorted(good, poor, side="right")
    return float((below + upto).sum() / (2 * len(poor) * len(good)))


def pairwise_cosine(tokens: Float[Tensor, "N W"]) -> float:
    """Mean cosine over all pairs of different rows; 1 when all rows point the same way."""
    unit = normalize(tokens.double(), dim=-1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - n) / (n * (n - 1))) if n > 1 else 0.0


def effective_rank(tokens: Float[Tensor, "N W"]) -> float:
    """exp of the entropy of the normalised singular values of the centred rows; 1 means a line.

    Reference:
        Roy and Vetterli, EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(tokens.double() - tokens.double().mean(dim=0))
    total = values.sum()
    if total <= 1e-12:
        return 1.0
    share = values / total
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
