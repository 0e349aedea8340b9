"""Which sequence of a study is rebuilt, from which other one, and which blocks of it are hidden."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from torch import Tensor

from willis.errors import ParamsError
from willis.models.vision import PATCH
from willis.params import PretrainParams

Mask = npt.NDArray[np.bool_]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Draw:
    """What is asked of one study.

    Attributes:
        target: channel of the sequence that is rebuilt.
        filler: channel of another sequence that fills the hidden blocks of view B; `target` itself where the
            study has no other, and then the template fills them.
        blocks: True where a block is hidden.
    """

    target: int
    filler: int
    blocks: Mask


def block_grid(shape: Triple, block: int) -> Triple:
    """Blocks along each axis; those at the far border may reach over it.

    Args:
        shape: voxels, padded to whole patches.
        block: edge of a block in voxels.
    """
    x, y, z = (math.ceil(edge / block) for edge in shape)
    return x, y, z


def draw(present: Mask, grid: Triple, rate: float, rng: np.random.Generator) -> Draw:
    """Choose a sequence among those that the study has, another one, and blocks at exactly `rate`.

    Args:
        present: (C,) which sequences the study has, one at least.
        grid: of `block_grid`.
        rate: share of blocks to hide, rounded to a whole number of them.
        rng: the only source of chance.
    """
    there = np.flatnonzero(present)
    target = int(rng.choice(there))
    others = there[there != target]
    filler = int(rng.choice(others)) if len(others) else target
    return Draw(target, filler, hidden_blocks(grid, rate, rng))


def hidden_blocks(grid: Triple, rate: float, rng: np.random.Generator) -> Mask:
    """Hide blocks of a grid at exactly `rate`, rounded to a whole number of them."""
    num_blocks = math.prod(grid)
    hidden = np.zeros(num_blocks, bool)
    hidden[rng.permutation(num_blocks)[: round(rate * num_blocks)]] = True
    return hidden.reshape(grid)


def spread(blocks: Bool[Tensor, "B X Y Z"], times: Triple, size: Triple) -> Bool[Tensor, "B X2 Y2 Z2"]:
    """Repeat blocks along each axis, to voxels or to tokens, and cut what reaches over the border.

    Args:
        blocks: hidden blocks of each study.
        times: voxels or tokens along each edge of a block.
        size: of the result.
    """
    for axis, number in enumerate(times, start=1):
        blocks = blocks.repeat_interleave(number, dim=axis)
    x, y, z = size
    return blocks[:, :x, :y, :z]


def check_block(params: PretrainParams) -> None:
    """See that a block is made of whole patches of the encoder: a token is hidden or it is not.

    Raises:
        ParamsError: it is not.
    """
    if any(params.block % edge for edge in PATCH):
        raise ParamsError(
            f"block is {params.block}; it must be a multiple of every edge of the encoder's patch {PATCH} "
            "(params.yaml: pretrain.block)"
        )


def as_tensors(draws: list[Draw]) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (B,), fillers (B,) and blocks (B, X, Y, Z) of a batch."""
    target = torch.tensor([one.target for one in draws])
    filler = torch.tensor([one.filler for one in draws])
    return target, filler, torch.from_numpy(np.stack([one.blocks for one in draws]))
