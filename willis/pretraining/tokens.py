"""Studies as tokens of the stem, with templates where a sequence is hidden or absent.

Blocks are whole patches of the linear stem, so a template fills them as tokens, once per step, and no
gradient is taken over the voxels of the batch.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from willis.models.vision import PatchStem


def covered(
    stem: PatchStem,
    kept: Float[Tensor, "B C X Y Z"],
    hidden: Bool[Tensor, "B C X2 Y2 Z2"],
    absent: Bool[Tensor, "B C"],
) -> Float[Tensor, "B W X2 Y2 Z2"]:
    """Tokens of volumes whose hidden blocks and absent sequences the templates fill.

    A template learns where it fills a hidden block; where a sequence is absent it stands in and is not asked.

    Args:
        stem: of the encoder.
        kept: padded volumes, 0 where hidden or absent.
        hidden: by token.
        absent: sequences that are not shown at all.
    """
    tokens: Tensor = stem.project(kept)
    own, fixed = stem.each(stem.template), stem.each(stem.template.detach())
    filled = torch.einsum("bcxyz,cwxyz->bwxyz", hidden.to(own.dtype), own)
    return tokens + filled + mixed(absent, fixed)


def alone(
    sequence: Float[Tensor, "B X Y Z"], channel: Int[Tensor, " B"], num_channels: int
) -> Float[Tensor, "B C X Y Z"]:
    """One sequence in its channel, nothing in the others."""
    volume = sequence.new_zeros(len(sequence), num_channels, *sequence.shape[1:])
    volume[torch.arange(len(sequence), device=sequence.device), channel] = sequence
    return volume


def mixed(
    share: Float[Tensor, "B C"] | Bool[Tensor, "B C"], tokens: Float[Tensor, "C W ..."]
) -> Float[Tensor, "B W ..."]:
    """Sum of the channels' tokens; by a product, for the gradient of an index is added up in any order."""
    return torch.einsum("bc,cw...->bw...", share.to(tokens.dtype), tokens)
