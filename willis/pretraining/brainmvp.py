"""BrainMVP: rebuild a masked sequence from a learned brain and from another sequence (docs/method.md).

A view shows the encoder one sequence alone, as it meets a study that has no other: templates stand in for the
rest. Blocks are whole patches of the linear stem, so the template fills them as tokens, once per step, and no
gradient is taken over the voxels of the batch.

Axis letters: B studies, C sequences, X Y Z voxels, W widths; a grid is a volume in tokens.

Reference:
    arXiv 2410.10604 (CVPR 2025): eq. 27 to 31 of docs/method.md, brought to an encoder of named sequences.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from willis.cohort.schema import Sequence
from willis.models.losses import contrast_loss, gather_rows
from willis.models.vision import (
    ENCODERS,
    PATCH,
    Block,
    EncoderSize,
    ImageEncoderName,
    PatchStem,
    VolumeEncoder,
    channels_last,
)
from willis.pretraining.masking import Triple, spread

TEMPLATE_WEIGHT = 10.0


@dataclass(frozen=True)
class Views:
    """A batch of studies and what is asked of each.

    Attributes:
        volume: codes; what stands where a sequence is absent is ignored.
        present: which sequences a study has.
        target: channel to rebuild; one that is present.
        filler: channel that fills view B; `target` where the study has no other.
        blocks: hidden blocks of the padded volume.
        weight: 0 for a row that only fills the batch.
    """

    volume: UInt8[Tensor, "B C X Y Z"]
    present: Bool[Tensor, "B C"]
    target: Int[Tensor, " B"]
    filler: Int[Tensor, " B"]
    blocks: Bool[Tensor, "B X2 Y2 Z2"]
    weight: Float[Tensor, " B"]

    def to(self, device: torch.device) -> "Views":
        """Copy to a device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Rebuilt:
    """What became of the two views: A is filled by the template, B by another sequence.

    Attributes:
        error_a: mean square over all voxels between what A was rebuilt to and the whole sequence.
        image_a: f(x_A), mean and maximum of the top grid.
        weight: 0 for rows that do not count.
    """

    error_a: Float[Tensor, " B"]
    error_b: Float[Tensor, " B"]
    image_a: Float[Tensor, "B W"]
    image_b: Float[Tensor, "B W"]
    weight: Float[Tensor, " B"]

    def joined(self) -> "Rebuilt":
        """The batch of all ranks together, differentiably; the same on every rank."""
        names = [field.name for field in fields(self)]
        return Rebuilt(*gather_rows([getattr(self, name) for name in names]))


@dataclass(frozen=True)
class ViewLosses:
    """The terms, unweighted, and their weighted sum."""

    total: Float[Tensor, ""]
    template: Float[Tensor, ""]
    cross: Float[Tensor, ""]
    contrast: Float[Tensor, ""]


class Decoder(nn.Module):
    """The top grid back to a volume of each sequence; light, and thrown away after pre-training.

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
        x, y, z = self.doubled
        tokens = self.mix(channels_last(_unpatched(self.up(top.movedim(1, -1)), (2, 2, 2))[:, :, :x, :y, :z]))
        chosen = nn.functional.one_hot(target, len(self.paint)).to(tokens.dtype)
        paint, base = _mixed(chosen, self.paint), _mixed(chosen, self.base)
        patches = tokens.flatten(2).transpose(1, 2) @ paint + base[:, None]
        painted = _unpatched(patches.unflatten(1, (x, y, z)), self.twice)
        x, y, z = self.padded
        return painted[:, 0, :x, :y, :z]


class BrainMVP(nn.Module):
    """The network's own encoder of volumes, without its last map, and a decoder."""

    def __init__(
        self, sequences: tuple[Sequence, ...], shape: Triple, block: int, name: ImageEncoderName = "cnn"
    ) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = VolumeEncoder(sequences, shape, width=1, dropout=0.0, name=name)
        self.encoder.body.pool = nn.Sequential()  # its width is the network's choice: contrast what it reads
        self.decoder = Decoder(self.encoder.stem, ENCODERS[name], len(sequences))
        x, y, z = PATCH
        self.block = block
        self.tokens_per_block = (block // x, block // y, block // z)

    def forward(self, views: Views, cross: bool) -> Rebuilt:
        """Fill, encode and rebuild both views.

        Args:
            views: studies of one batch.
            cross: another sequence fills view B; False fills it by the template, as view A.
        """
        values = self.encoder.decoded(views.volume, views.present)
        rows = torch.arange(len(values), device=values.device)
        whole = values[rows, views.target]
        top_a, top_b = (self.encoder.body.top(tokens) for tokens in self.tokens(views, values, cross))
        pooled = self.encoder.body.pooled
        return Rebuilt(
            self.error(top_a, views, whole), self.error(top_b, views, whole),
            pooled(top_a), pooled(top_b), views.weight,
        )  # fmt: skip

    def error(self, top: Tensor, views: Views, whole: Float[Tensor, "B X Y Z"]) -> Float[Tensor, " B"]:
        """Mean square between what a top grid is painted to and the whole sequence, padding left out."""
        x, y, z = self.shape
        painted: Tensor = self.decoder(top, views.target).float()
        return (painted - whole)[:, :x, :y, :z].square().mean(dim=(1, 2, 3))

    def tokens(self, views: Views, values: Float[Tensor, "B C X Y Z"], cross: bool) -> tuple[Tensor, Tensor]:
        """Both views as tokens of the stem, (B, W, grid...).

        The template learns in view A's hidden blocks alone; elsewhere it stands in and is not asked.
        """
        stem, rows = self.encoder.stem, torch.arange(len(values), device=values.device)
        hidden = spread(views.blocks, (self.block,) * 3, _triple(stem.padded))
        whole = values[rows, views.target]
        kept = whole.masked_fill(hidden, 0.0)
        lent = cross & (views.filler != views.target)
        filled = torch.where(hidden & lent[:, None, None, None], values[rows, views.filler], kept)
        chosen = nn.functional.one_hot(views.target, values.shape[1]).to(values.dtype)
        own = _mixed(chosen, stem.each(stem.template))
        fixed = stem.each(stem.template.detach())
        own_fixed, others = _mixed(chosen, fixed), _mixed(1 - chosen, fixed)
        by_token = spread(views.blocks, self.tokens_per_block, _triple(stem.grid()))[:, None]
        unlent = by_token & ~lent[:, None, None, None, None]
        view_a = stem.project(_alone(kept, views.target, values)) + own * by_token + others
        view_b = stem.project(_alone(filled, views.target, values)) + own_fixed * unlent + others
        return view_a, view_b


def brainmvp_loss(rebuilt: Rebuilt, tau: float, contrast_weight: float) -> ViewLosses:
    """10 MSE(dec f(x_A), x_m) + MSE(dec f(x_B), x_m) + L_nce, over the rows that count.

    The contrast is always computed, a weight of 0 included, so that every step has the same graph.

    Args:
        rebuilt: of all ranks (see `Rebuilt.joined`).
        tau: temperature of the contrast.
        contrast_weight: 1 in the last share of the run, 0 before.
    """
    weight = rebuilt.weight / rebuilt.weight.sum().clamp(min=1e-9)
    template = (rebuilt.error_a * weight).sum()
    cross = (rebuilt.error_b * weight).sum()
    scale = template.new_tensor(1 / tau)
    image_a, image_b = _standardised(rebuilt)
    contrast = contrast_loss(image_a, image_b, rebuilt.weight > 0, scale)
    total = TEMPLATE_WEIGHT * template + cross + contrast_weight * contrast
    return ViewLosses(total, template, cross, contrast)


def _standardised(rebuilt: Rebuilt) -> list[Float[Tensor, "B W"]]:
    """Both views' features about their mean over the batch, in units of their spread.

    Features of brains point nearly one way: with cosines near 1 a contrast of them asks for nothing.
    """
    images = (rebuilt.image_a.float(), rebuilt.image_b.float())
    counted = torch.cat([image[rebuilt.weight > 0] for image in images])
    spread_of = (counted.var(dim=0, correction=0) + 1e-6).sqrt()  # a root of 0 would have no gradient
    return [(image - counted.mean(dim=0)) / spread_of for image in images]


def _unpatched(tokens: Float[Tensor, "B X Y Z P"], patch: Triple) -> Float[Tensor, "B W X2 Y2 Z2"]:
    """Lay what stands in each token, channels first, over the patch that the token covers."""
    size = tokens.shape[:4]
    apart: Tensor = tokens.unflatten(-1, (-1, *patch)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    x, y, z = (edge * step for edge, step in zip(size[1:], patch, strict=True))
    laid: Tensor = apart.reshape(size[0], -1, x, y, z)
    return laid


def _alone(
    sequence: Float[Tensor, "B X Y Z"], channel: Int[Tensor, " B"], like: Float[Tensor, "B C X Y Z"]
) -> Float[Tensor, "B C X Y Z"]:
    """One sequence in its channel, nothing in the others."""
    alone = torch.zeros_like(like)
    alone[torch.arange(len(sequence), device=like.device), channel] = sequence
    return alone


def _mixed(share: Float[Tensor, "B C"], tokens: Float[Tensor, "C W ..."]) -> Float[Tensor, "B W ..."]:
    """Sum of the channels' tokens; by a product, for the gradient of an index is added up in any order."""
    return torch.einsum("bc,cw...->bw...", share.to(tokens.dtype), tokens)


def _triple(size: tuple[int, ...]) -> Triple:
    x, y, z = size
    return x, y, z
