"""What the pre-training loop asks of a method: draw a batch, answer it, say what the answer costs.

A method is a network around the encoder that `train` will start from: everything else of it is thrown away.
All of its state is in its `state_dict`, so that a checkpoint holds it whole.

Axis letters: B studies, C sequences, X Y Z voxels, W widths.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from willis.cohort import schema
from willis.imaging.shards import StudyArrays
from willis.models.losses import gather_rows
from willis.models.vision import ENCODERS, PATCH, ImageEncoderName, VolumeEncoder
from willis.params import PretrainParams
from willis.pretraining.decoder import Decoder
from willis.pretraining.masking import Triple, spread
from willis.training.dataset import Rows
from willis.training.start import start_templates


@dataclass(frozen=True)
class Studies:
    """One share of a batch as it lies on disk.

    Attributes:
        volume: codes; what stands where a sequence is absent is ignored.
        present: which sequences a study has; one at least.
        rows: places of the studies in the shards.
        weight: 0 for a row that only fills the batch.
        rngs: chance of each study, the same whoever asks.
    """

    volume: UInt8[np.ndarray, "B C X Y Z"]
    present: Bool[np.ndarray, "B C"]
    rows: Rows
    weight: Float[np.ndarray, " B"]
    rngs: list[np.random.Generator]


@dataclass(frozen=True)
class PerStudy:
    """Tensors with one row per study.

    Attributes:
        weight: 0 for a row that only fills the batch; every kind has it, as its last field.
    """

    if TYPE_CHECKING:
        weight: Tensor

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return replace(self, **moved)

    def joined(self) -> Self:
        """The batch of all ranks together, differentiably; the same on every rank."""
        return type(self)(*gather_rows([getattr(self, field.name) for field in fields(self)]))


@dataclass(frozen=True)
class MethodLosses:
    """The weighted sum; a method adds its terms, unweighted, each a scalar."""

    total: Float[Tensor, ""]

    def terms(self) -> dict[str, Tensor]:
        """The terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "total"}


V = TypeVar("V", bound=PerStudy)
A = TypeVar("A", bound=PerStudy)


class Method(nn.Module, ABC, Generic[V, A]):
    """The network's own encoder of volumes, without its last map, and a decoder.

    Attributes:
        headings: of what `pictures` returns.
        reconstruction: weights of the terms that say how well volumes are rebuilt.
    """

    headings: ClassVar[tuple[str, ...]]
    reconstruction: ClassVar[Mapping[str, float]]

    def __init__(
        self,
        sequences: tuple[schema.Sequence, ...],
        shape: Triple,
        block: int,
        name: ImageEncoderName = "cnn",
    ) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = VolumeEncoder(sequences, shape, width=1, dropout=0.0, name=name)
        self.encoder.body.pool = nn.Sequential()  # its width is the network's choice: contrast what it reads
        self.decoder = Decoder(self.encoder.stem, ENCODERS[name], len(sequences))
        self.padded, self.grid = _triple(self.encoder.stem.padded), _triple(self.encoder.stem.grid())
        x, y, z = PATCH
        self.block = block
        self.tokens_per_block = (block // x, block // y, block // z)

    @classmethod
    def of(cls, sequences: tuple[schema.Sequence, ...], shape: Triple, params: PretrainParams) -> Self:
        """The network of a run, initialised by torch's state of chance."""
        return cls(sequences, shape, params.block, params.image_encoder)

    def start(self, arrays: StudyArrays, rows: Rows) -> None:
        """Take from the studies to learn from what the first step needs."""
        start_templates(self.encoder, arrays, rows)

    def hidden(
        self, blocks: Bool[Tensor, "B X Y Z"]
    ) -> tuple[Bool[Tensor, "B X2 Y2 Z2"], Bool[Tensor, "B X3 Y3 Z3"]]:
        """Hidden blocks as voxels of the padded volume and as tokens of the stem."""
        voxels = spread(blocks, (self.block,) * 3, self.padded)
        return voxels, spread(blocks, self.tokens_per_block, self.grid)

    @classmethod
    @abstractmethod
    def asked(cls, studies: Studies, grid: Triple, rate: float) -> V:
        """Draw what is asked of each study.

        Args:
            studies: one share of a batch.
            grid: blocks along each axis.
            rate: share of blocks to hide.
        """

    @abstractmethod
    def forward(self, views: V, cross: bool) -> A:
        """Answer a share of a batch.

        Args:
            views: of `asked`.
            cross: one sequence may stand for another; False in the first steps, where templates come first.
        """

    @abstractmethod
    def losses(self, answer: A, params: PretrainParams, contrast: float) -> MethodLosses:
        """What the answer to the whole batch costs.

        Args:
            answer: of all ranks (see `PerStudy.joined`).
            params: section `pretrain`.
            contrast: weight of what compares views. A weight of 0 leaves the graph as it is.
        """

    def follow(self, answer: A, params: PretrainParams) -> None:
        """Take in a step that was made; nothing for most methods."""

    @abstractmethod
    def pictures(self, views: V, channel: int) -> list[Float[Tensor, "X Y Z"]]:
        """One study's sequence: whole, as it is seen, and as it is rebuilt.

        Args:
            views: of one study.
            channel: which sequence; one that is present.
        """


def standardised(
    images: Sequence[Float[Tensor, "B W"]], counted: Bool[Tensor, " B"]
) -> list[Float[Tensor, "B W"]]:
    """Features of several views about their common mean over the batch, in units of their spread.

    Features of brains point nearly one way: with cosines near 1 a contrast of them asks for nothing.
    """
    images = [image.float() for image in images]
    together = torch.cat([image[counted] for image in images])
    spread_of = (together.var(dim=0, correction=0) + 1e-6).sqrt()  # a root of 0 would have no gradient
    return [(image - together.mean(dim=0)) / spread_of for image in images]


def row_mean(each: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the rows that count; 0, still attached, when there are none."""
    return (each * (weight / weight.sum().clamp(min=1e-9))).sum()


def _triple(size: tuple[int, ...]) -> Triple:
    x, y, z = size
    return x, y, z
