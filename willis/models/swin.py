"""Attention within windows of a grid of tokens, from MONAI's Swin transformer.

MONAI's whole `SwinTransformer` embeds patches itself. The stem of `vision.py` has to stay: in it templates
stand in for absent sequences, and pre-training hides its tokens. So the blocks are MONAI's, the stem is ours.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

MAX_WINDOW = 7
HEAD_WIDTH = 16


class SwinPair(nn.Module):
    """Two Swin blocks: attention within windows, then within windows that are shifted by half of one.

    Reference:
        Liu et al., ICCV 2021, arXiv 2103.14030; in three dimensions Hatamizadeh et al., arXiv 2201.01266.
    """

    mask: Tensor

    def __init__(self, width: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask

        window, heads = window_of(grid), width // HEAD_WIDTH
        shift = tuple(0 if step == edge else step // 2 for edge, step in zip(grid, window, strict=True))
        padded = [math.ceil(edge / step) * step for edge, step in zip(grid, window, strict=True)]
        self.within: Any = SwinTransformerBlock(width, heads, window, (0,) * len(grid))
        self.shifted: Any = SwinTransformerBlock(width, heads, window, shift)
        self.register_buffer(
            "mask", compute_mask(padded, window, shift, torch.device("cpu")), persistent=False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, width, grid...) to the same; channels are last in memory throughout."""
        mixed: Tensor = self.shifted(self.within(tokens.movedim(1, -1), None), self.mask)
        return mixed.movedim(-1, 1)


def window_of(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Edges of a window: at most 7 tokens, as in Swin UNETR, and so that windows cut the grid most evenly.

    11 tokens are two windows of 6, not of 7: less is padded, and attention costs the square of a window.
    """
    return tuple(math.ceil(edge / math.ceil(edge / MAX_WINDOW)) for edge in grid)
