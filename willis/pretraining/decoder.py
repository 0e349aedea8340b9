"""From the encoder's top grid back to volumes; light, and thrown away after pre-training."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from willis.models.vision import PATCH, Block, EncoderSize, PatchStem, channels_last
from willis.pretraining.masking import Triple
from willis.pretraining.tokens import mixed


class Decoder(nn.Module):
    """The top grid back to a volume of each sequence.

    Both maps are linear from a token to the patch below it (transposed convolutions without overlap, which as
    such are slow on a CPU).
    """

    def __init__(self, stem: PatchStem, size: EncoderSize, num_sequences: int) -> None:
        super().__init__()
        self.doubled = tuple(math.ceil(edge / 2) for edge in stem.grid())
        self.padded = stem.padded
        x, y, z = PATCH
        self.twice = (2 * x, 2 * y, 2 * z)
        num_voxels = math.prod(self.twice)
        self.up = nn.Linear(size.top, 8 * size.body)
        self.mix = Block(size.body, 3)
        self.paint = nn.Parameter(torch.randn(num_sequences, size.body, num_voxels) * 0.02)
        self.base = nn.Parameter(torch.zeros(num_sequences, num_voxels))

    def forward(self, top: Tensor, target: Int[Tensor, " B"]) -> Float[Tensor, "B X Y Z"]:
        """(B, top width, grid...) to padded volumes of the sequences that are asked for."""
        return self.painted(self.doubled_grid(top), target)

    def doubled_grid(self, top: Tensor) -> Tensor:
        """(B, top width, grid...) to (B, body width, twice the grid...)."""
        x, y, z = self.doubled
        tokens: Tensor = self.mix(
            channels_last(_unpatched(self.up(top.movedim(1, -1)), (2, 2, 2))[:, :, :x, :y, :z])
        )
        return tokens

    def painted(self, tokens: Tensor, target: Int[Tensor, " B"]) -> Float[Tensor, "B X Y Z"]:
        """Paint patches of one sequence per study from the doubled grid."""
        x, y, z = self.doubled
        chosen = nn.functional.one_hot(target, len(self.paint)).to(tokens.dtype)
        paint, base = mixed(chosen, self.paint), mixed(chosen, self.base)
        patches = tokens.flatten(2).transpose(1, 2) @ paint + base[:, None]
        painted = _unpatched(patches.unflatten(1, (x, y, z)), self.twice)
        x, y, z = self.padded
        return painted[:, 0, :x, :y, :z]


def error_where_hidden(
    painted: Float[Tensor, "B X Y Z"],
    whole: Float[Tensor, "B X Y Z"],
    hidden: Bool[Tensor, "B X Y Z"],
    shape: Triple,
) -> Float[Tensor, " B"]:
    """Mean square over the hidden voxels of a volume; 0 where none is hidden.

    Args:
        painted: what a sequence was rebuilt to, padded.
        whole: the sequence, padded.
        hidden: voxels that the encoder was not shown, padded.
        shape: of the volume without its padding, which is not asked about.
    """
    x, y, z = shape
    asked = hidden[:, :x, :y, :z]
    apart = (painted.float() - whole)[:, :x, :y, :z].square()
    return (apart * asked).sum(dim=(1, 2, 3)) / asked.sum(dim=(1, 2, 3)).clamp(min=1)


def _unpatched(tokens: Float[Tensor, "B X Y Z P"], patch: Triple) -> Float[Tensor, "B W X2 Y2 Z2"]:
    """Lay what stands in each token, channels first, over the patch that the token covers."""
    size = tokens.shape[:4]
    apart: Tensor = tokens.unflatten(-1, (-1, *patch)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    x, y, z = (edge * step for edge, step in zip(size[1:], patch, strict=True))
    laid: Tensor = apart.reshape(size[0], -1, x, y, z)
    return laid
