"""From the logits of one validation pass to the numbers that stop the run."""

import torch
from torch import Tensor, nn

from willis.training.metrics import EpochRecord, auc, effective_rank, pairwise_cosine


def validation_metrics(parts: list[list[Tensor]]) -> dict[str, float | None]:
    """Put the batches of one validation pass together.

    Args:
        parts: per batch logit, outcome, weight and, for a fusion with a pair, paired, image tokens, text
            tokens and scale.

    Returns:
        The validation fields of an `EpochRecord`.
    """
    scales = [part.pop() for part in parts if len(part) > 3]
    columns = [torch.cat(column).float().cpu() for column in zip(*parts, strict=True)]
    counted = columns[2] > 0
    logit, outcome, _, *tokens = (column[counted] for column in columns)
    metrics: dict[str, float | None] = {
        "val_loss": float(nn.functional.binary_cross_entropy_with_logits(logit, outcome)),
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
