"""From the logits of one validation pass to the numbers that stop the run."""

import torch
from torch import Tensor

from willis.models.losses import outcome_loss
from willis.training.metrics import EpochRecord, auc, effective_rank, pairwise_cosine


def validation_metrics(parts: list[list[Tensor]], offsets: Tensor | None) -> dict[str, float | None]:
    """Put the batches of one validation pass together.

    Args:
        parts: per batch logit, outcome, grade, weight and, for a fusion with a pair, paired, image tokens,
            text tokens and scale.
        offsets: of the cumulative logits, or None.

    Returns:
        The validation fields of an `EpochRecord`.
    """
    scales = [part.pop() for part in parts if len(part) > 4]
    columns = [torch.cat(column).float().cpu() for column in zip(*parts, strict=True)]
    counted = columns[3] > 0
    logit, outcome, grade, weight, *tokens = (column[counted] for column in columns)
    metrics: dict[str, float | None] = {
        "val_loss": float(outcome_loss(logit, outcome, grade, weight, offsets)),
        "val_auc": auc(outcome.numpy(), logit.numpy()),
    }
    if tokens:
        paired = tokens[0] > 0
        for name, values in (("image", tokens[1][paired]), ("text", tokens[2][paired])):
            metrics[f"{name}_cosine"] = pairwise_cosine(values)
            metrics[f"{name}_rank"] = effective_rank(values)
        metrics["temperature"] = 1.0 / float(scales[-1])
    return metrics


def is_better(record: EpochRecord, best: EpochRecord, stop_on: str) -> bool:
    """True when `record` beats `best`; without an AUC (one class only) the loss decides."""
    if stop_on == "auc" and record.val_auc is not None and best.val_auc is not None:
        return (record.val_auc, -record.val_loss) > (best.val_auc, -best.val_loss)
    return record.val_loss < best.val_loss
