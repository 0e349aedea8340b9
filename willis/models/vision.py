"""The image encoders: a patch stem on named sequences and a body that mixes its tokens; a 2-D one for planes.

The body is a CNN of one of three sizes, or attention within windows. An absent sequence is replaced by its
learned template (a whole-brain volume). The stem is linear, so the template is put through it once per step
and added where a sequence is absent: the same numbers as filling the volume would give (docs/method.md,
eq. 2), without a gradient over every voxel of the batch.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from willis.cohort.schema import Sequence
from willis.imaging.shards import NUM_PLANES, PLANE_SIZE, decode
from willis.models.frozen import KeptTops
from willis.models.swin import SwinPair

PATCH = (4, 4, 2)
PLANE_PATCH = (4, 4)

ImageEncoderName = Literal["cnn_small", "cnn", "cnn_large", "swin"]


@dataclass(frozen=True)
class EncoderSize:
    """Widths and depth of an image encoder.

    Attributes:
        stem: width of the patch stem's tokens.
        body: width after the grid has been halved; one layer mixes there.
        top: width after it has been halved again.
        layers: that mix the top grid.
        windows: a layer is attention within windows (a pair of Swin blocks), not a depthwise convolution.
    """

    stem: int
    body: int
    top: int
    layers: int
    windows: bool = False


ENCODERS: dict[ImageEncoderName, EncoderSize] = {
    "cnn_small": EncoderSize(stem=16, body=32, top=64, layers=1),
    "cnn": EncoderSize(stem=24, body=64, top=128, layers=2),
    "cnn_large": EncoderSize(stem=32, body=128, top=256, layers=4),
    "swin": EncoderSize(stem=24, body=64, top=128, layers=1, windows=True),
}


class PatchStem(nn.Module):
    """Patches to tokens by one linear map per sequence, with templates where a sequence is absent.

    s[b] = sum_c present[b, c] W_c * x[b, c] + (1 - present[b, c]) W_c * T_c
    """

    def __init__(self, channels: int, size: tuple[int, ...], patch: tuple[int, ...], width: int) -> None:
        super().__init__()
        convolution: Any = nn.Conv3d if len(size) == 3 else nn.Conv2d
        self.patch = patch
        self.padded = tuple(math.ceil(edge / step) * step for edge, step in zip(size, patch, strict=True))
        self.project = convolution(channels, width, patch, patch)
        self.template = nn.Parameter(torch.zeros(channels, *self.padded))

    def forward(self, values: Float[Tensor, "B C ..."], present: Bool[Tensor, "B C"]) -> Tensor:
        """Embed patches.

        Args:
            values: padded to a whole number of patches, 0 where a channel is absent.
            present: False where the template stands in.

        Returns:
            (B, width, grid...).
        """
        tokens: Tensor = self.project(values)
        absent = (~present).to(tokens.dtype)
        return tokens + torch.einsum("bc,cw...->bw...", absent, self.each(self.template).to(tokens.dtype))

    def each(self, volumes: Float[Tensor, "C ..."]) -> Tensor:
        """Each channel's volume through its own share of the projection, no bias: (C, width, grid...)."""
        weight = self.project.weight
        convolve: Any = nn.functional.conv3d if weight.ndim == 5 else nn.functional.conv2d
        tokens = [
            convolve(volume[None, None], weight[:, channel : channel + 1], stride=self.patch)
            for channel, volume in enumerate(volumes)
        ]
        return torch.cat(tokens)

    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(edge // step for edge, step in zip(self.padded, self.patch, strict=True))


def channels_last_weights(convolution: nn.Conv3d | nn.Conv2d) -> nn.Module:
    """Lay depthwise weights as their gradients come, so that DDP need not copy them."""
    form = torch.channels_last_3d if convolution.weight.ndim == 5 else torch.channels_last
    moved: nn.Module = convolution.to(memory_format=form)  # type: ignore[call-overload]
    return moved


class Block(nn.Module):
    """x + MLP(norm(depthwise(x))): space is mixed per channel, channels are mixed per place."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.space = channels_last_weights(convolution(width, width, 3, padding=1, groups=width))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, width, grid...) to the same; channels are last in memory throughout."""
        mixed: Tensor = self.mlp(self.norm(self._spread(tokens).movedim(1, -1)))
        return tokens + mixed.movedim(-1, 1)

    def _spread(self, tokens: Tensor) -> Tensor:
        # torch 2.13 on a CPU: where the first axis has two places, a depthwise weight's gradient in bfloat16
        # holds memory that nobody wrote.
        narrow = tokens.shape[2] == 2 and tokens.device.type == "cpu"
        with torch.autocast(tokens.device.type, enabled=False) if narrow else nullcontext():
            spread: Tensor = self.space(tokens.float() if narrow else tokens)
        return spread


def mixing(size: EncoderSize, width: int, grid: tuple[int, ...]) -> nn.Module:
    """One layer in which places of a grid meet."""
    return SwinPair(width, grid) if size.windows else Block(width, len(grid))


def halve(width_in: int, width_out: int, dimensions: int) -> nn.Module:
    """Halve the grid (rounded up) and change the width."""
    convolution: type[nn.Conv3d] | type[nn.Conv2d] = nn.Conv3d if dimensions == 3 else nn.Conv2d
    return convolution(width_in, width_out, 2, stride=2)


def channels_last(tokens: Tensor) -> Tensor:
    """Lay channels last in memory: a depthwise convolution is four times as fast so on a CPU."""
    form = torch.channels_last_3d if tokens.ndim == 5 else torch.channels_last
    return tokens.contiguous(memory_format=form)  # type: ignore[call-overload,no-any-return,unused-ignore]


def even(tokens: Tensor) -> Tensor:
    """Pad every axis of the grid to an even number, so that halving drops no border."""
    pads = [pad for edge in reversed(tokens.shape[2:]) for pad in (0, edge % 2)]
    return nn.functional.pad(tokens, pads) if any(pads) else tokens


class Body(nn.Module):
    """Stem tokens to a grid and to one vector: halve, add places, mix, halve, mix, mean and maximum."""

    def __init__(self, grid: tuple[int, ...], size: EncoderSize, width: int, dropout: float) -> None:
        super().__init__()
        dimensions = len(grid)
        halved = tuple((edge + 1) // 2 for edge in grid)
        quartered = tuple((edge + 1) // 2 for edge in halved)
        self.down = halve(size.stem, size.body, dimensions)
        self.norm = nn.LayerNorm(size.body)
        self.place = nn.Parameter(torch.randn(1, size.body, *halved) * 0.02)
        self.low = mixing(size, size.body, halved)
        self.middle = halve(size.body, size.top, dimensions)
        self.high = nn.Sequential(*(mixing(size, size.top, quartered) for _ in range(size.layers)))
        self.pool = nn.Sequential(nn.LayerNorm(2 * size.top), nn.Dropout(dropout),
                                  nn.Linear(2 * size.top, width))  # fmt: skip

    def forward(self, tokens: Tensor) -> Float[Tensor, "B W"]:
        """(B, stem width, grid...) to (B, width)."""
        return self.pooled(self.top(tokens))

    def top(self, tokens: Tensor) -> Tensor:
        """(B, stem width, grid...) to (B, top width, a quarter of the grid along each axis...)."""
        tokens = self.norm(self.down(channels_last(even(tokens.relu_()))).movedim(1, -1)).movedim(-1, 1)
        tokens = tokens + self.place
        mixed: Tensor = self.high(self.middle(channels_last(even(self.low(tokens)))))
        return mixed

    def pooled(self, top: Tensor) -> Float[Tensor, "B W"]:
        """Mean and maximum over the top grid to (B, width)."""
        flat = top.flatten(2)
        pooled: Tensor = self.pool(torch.cat([flat.mean(dim=2), flat.amax(dim=2)], dim=1))
        return pooled


class VolumeEncoder(nn.Module):
    """Volumes of named sequences to one vector per study; frozen, all but its last map stays as it is."""

    def __init__(
        self,
        sequences: tuple[Sequence, ...],
        shape: tuple[int, int, int],
        width: int,
        dropout: float,
        name: ImageEncoderName = "cnn",
    ) -> None:
        super().__init__()
        self.sequences, self.name = sequences, name
        self.stem = PatchStem(len(sequences), shape, PATCH, ENCODERS[name].stem)
        self.body = Body(self.stem.grid(), ENCODERS[name], width, dropout)
        self.kept: KeptTops | None = None

    def freeze(self) -> None:
        """Let nothing learn any more but the last map, which pre-training does not teach."""
        self.requires_grad_(False)
        self.body.pool.requires_grad_(True)
        self.kept = KeptTops(self.encoded)

    def forward(
        self,
        volume: UInt8[Tensor, "B C X Y Z"] | Float[Tensor, "B C X Y Z"],
        sequence_present: Bool[Tensor, "B C"],
    ) -> Float[Tensor, "B W"]:
        """Encode volumes.

        Args:
            volume: codes (uint8) or decoded values; what stands where a sequence is absent is ignored.
            sequence_present: which sequences each study has.
        """
        return self.body.pooled(self.top(volume, sequence_present))

    def top(
        self,
        volume: UInt8[Tensor, "B C X Y Z"] | Float[Tensor, "B C X Y Z"],
        sequence_present: Bool[Tensor, "B C"],
    ) -> Tensor:
        """Volumes to the body's top grid, (B, top width, grid...), before it is pooled."""
        if self.kept is None or volume.is_cuda:  # codes on a GPU would have to come back
            return self.encoded(volume, sequence_present)
        return self.kept.tops(volume, sequence_present)

    def encoded(
        self,
        volume: UInt8[Tensor, "B C X Y Z"] | Float[Tensor, "B C X Y Z"],
        sequence_present: Bool[Tensor, "B C"],
    ) -> Tensor:
        """What `top` returns, encoded now."""
        return self.body.top(self.stem(self.decoded(volume, sequence_present), sequence_present))

    def decoded(self, volume: Tensor, sequence_present: Bool[Tensor, "B C"]) -> Tensor:
        """Decode, blank absent sequences and pad to whole patches, one study at a time to stay in cache."""
        values = volume.new_zeros((*volume.shape[:2], *self.stem.padded), dtype=torch.float32)
        x, y, z = volume.shape[2:]
        for n in range(len(volume)):  # by index: views from iterating would refuse a gradient (saliency)
            known = volume[n] if volume.is_floating_point() else decode(volume[n], self.sequences)
            values[n, :, :x, :y, :z] = known
            values[n, ~sequence_present[n]] = 0.0
        return values


class PlanesEncoder(nn.Module):
    """Three ready-made planes of one sequence (grey values, 0 = nothing or masked out) to one vector."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        size = ENCODERS["cnn"]  # whatever encodes the volumes: three planes ask for no more
        self.stem = PatchStem(NUM_PLANES, (PLANE_SIZE, PLANE_SIZE), PLANE_PATCH, size.stem)
        self.body = Body(self.stem.grid(), size, width, dropout)

    def forward(
        self, planes: UInt8[Tensor, "B P H W"], planes_present: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B W"]:
        """Encode planes; a study without them gets the learned template."""
        present = planes_present[:, None].expand(-1, planes.shape[1])
        values = planes.float().div_(64.0) * present[:, :, None, None]
        embedded: Tensor = self.body(self.stem(values, present))
        return embedded
