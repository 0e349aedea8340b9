"""AdamW and its learning rate over a run."""

import math

import torch
from torch import nn

from willis.params import LoopParams


def learning_rate(params: LoopParams, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0.

    Args:
        params: peak rate and share of steps to warm up.
        step: from 0.
        steps: in the whole run.
    """
    warmup = max(1, round(params.warmup_share * steps))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(network: nn.Module, params: LoopParams) -> torch.optim.AdamW:
    """AdamW; weights of linear maps and convolutions decay, everything learned as a value does not."""
    named = list(network.named_parameters())
    decayed = [p for name, p in named if p.ndim > 1 and name.endswith("weight")]
    kept = [p for name, p in named if not (p.ndim > 1 and name.endswith("weight"))]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=params.learning_rate, fused=True)
