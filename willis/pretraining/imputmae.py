"""impuTMAE for the sequences of a study: rebuild what is hidden from whatever else is there (docs/method.md).

All sequences that are to be seen are shown at once, each with blocks hidden; some sequences are hidden whole,
as if the study lacked them. Templates stand where something is hidden. A sequence that the study really lacks
is never scored.

Axis letters: B studies, C sequences, X Y Z voxels.

Reference:
    arXiv 2508.09195: eq. 44 to 46 of docs/method.md, brought to an encoder of named sequences.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from willis.params import PretrainParams
from willis.pretraining.decoder import error_where_hidden
from willis.pretraining.masking import Triple, hidden_blocks
from willis.pretraining.method import Method, MethodLosses, PerStudy, Studies, row_mean
from willis.pretraining.tokens import covered
from willis.training.dataset import dropped


@dataclass(frozen=True)
class Masked(PerStudy):
    """A batch of studies and what is hidden of each.

    Attributes:
        volume: codes; what stands where a sequence is absent is ignored.
        present: which sequences a study has.
        whole: present ones that are hidden whole; never all of them.
        blocks: hidden blocks of each padded sequence.
        weight: 0 for a row that only fills the batch.
    """

    volume: UInt8[Tensor, "B C X Y Z"]
    present: Bool[Tensor, "B C"]
    whole: Bool[Tensor, "B C"]
    blocks: Bool[Tensor, "B C X2 Y2 Z2"]
    weight: Float[Tensor, " B"]


@dataclass(frozen=True)
class Imputed(PerStudy):
    """What became of the sequences.

    Attributes:
        error: mean square over the hidden voxels of each present sequence; 0 for the others.
        present: which sequences are scored.
        weight: 0 for rows that do not count.
    """

    error: Float[Tensor, "B C"]
    present: Bool[Tensor, "B C"]
    weight: Float[Tensor, " B"]


@dataclass(frozen=True)
class ImputLosses(MethodLosses):
    """The one term, and the sum, which is the same."""

    masked: Float[Tensor, ""]


class ImpuTMAE(Method[Masked, Imputed]):
    """One masked autoencoder over all sequences of a study."""

    headings: ClassVar = ("a study", "what is seen", "rebuilt", "rebuilt from the others")
    reconstruction: ClassVar = {"masked": 1.0}

    @classmethod
    def asked(cls, studies: Studies, grid: Triple, rate: float) -> Masked:
        """Draw which sequences are seen, each non-empty subset equally likely, and blocks of each."""
        whole, blocks = [], []
        for there, rng in zip(studies.present, studies.rngs, strict=True):
            whole.append(there & ~dropped(there, 1.0, rng))
            blocks.append([hidden_blocks(grid, rate, rng) for _ in there])
        return Masked(
            torch.from_numpy(studies.volume),
            torch.from_numpy(studies.present),
            torch.from_numpy(np.array(whole)),
            torch.from_numpy(np.array(blocks)),
            torch.from_numpy(studies.weight),
        )

    def forward(self, views: Masked, cross: bool) -> Imputed:
        """Hide, encode at once and rebuild every sequence.

        Args:
            views: studies of one batch.
            cross: sequences may be hidden whole; False hides blocks alone.
        """
        values = self.encoder.decoded(views.volume, views.present)
        tokens, voxels = self.tokens(views, values, cross)
        grid = self.decoder.doubled_grid(self.encoder.body.top(tokens))
        errors = [
            error_where_hidden(
                self.decoder.painted(grid, self._channel(views, c)), values[:, c], voxels[:, c], self.shape
            )
            for c in range(values.shape[1])
        ]
        error = torch.where(views.present, torch.stack(errors, dim=1), 0.0)
        return Imputed(error, views.present, views.weight)

    def tokens(
        self, views: Masked, values: Float[Tensor, "B C X Y Z"], cross: bool
    ) -> tuple[Tensor, Bool[Tensor, "B C X Y Z"]]:
        """What is seen as tokens of the stem, (B, W, grid...), and the hidden voxels of each sequence."""
        whole = (views.whole & cross)[..., None, None, None]
        blocks = (views.blocks | whole) & views.present[..., None, None, None]
        voxels, hidden = (
            mask.unflatten(0, views.present.shape) for mask in self.hidden(blocks.flatten(0, 1))
        )
        return covered(self.encoder.stem, values.masked_fill(voxels, 0.0), hidden, ~views.present), voxels

    def losses(self, answer: Imputed, params: PretrainParams, contrast: float) -> ImputLosses:
        """Mean over the rows that count of the mean over their present sequences; nothing is contrasted."""
        each = answer.error.float().sum(dim=1) / answer.present.sum(dim=1).clamp(min=1)
        masked = row_mean(each, answer.weight)
        return ImputLosses(masked, masked)

    def pictures(self, views: Masked, channel: int) -> list[Float[Tensor, "X Y Z"]]:
        """One sequence: whole, masked, rebuilt from every masked one, and from the others alone."""
        values = self.encoder.decoded(views.volume, views.present)
        alone = torch.zeros_like(views.whole).index_fill_(1, torch.tensor([channel]), True)
        rebuilt = []
        for whole in (torch.zeros_like(alone), alone):
            tokens, voxels = self.tokens(replace(views, whole=whole), values, cross=True)
            top = self.encoder.body.top(tokens)
            rebuilt.append(self.decoder(top, self._channel(views, channel)).float()[0])
            if not whole.any():
                seen = values.masked_fill(voxels, 0.0)[0, channel]
        return [values[0, channel], seen, *rebuilt]

    def _channel(self, views: Masked, channel: int) -> Tensor:
        return torch.full((len(views.weight),), channel, device=views.weight.device)
