"""BrainMVP: rebuild a masked sequence from a learned brain and from another sequence (docs/method.md).

A view shows the encoder one sequence alone, as it meets a study that has no other: templates stand in for the
rest (`willis.pretraining.tokens`).

Axis letters: B studies, C sequences, X Y Z voxels, W widths; a grid is a volume in tokens.

Reference:
    arXiv 2410.10604 (CVPR 2025): eq. 27 to 31 of docs/method.md, brought to an encoder of named sequences.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from willis.models.losses import contrast_loss
from willis.params import PretrainParams
from willis.pretraining.masking import Triple, as_tensors, draw
from willis.pretraining.method import Method, MethodLosses, PerStudy, Studies, row_mean, standardised
from willis.pretraining.tokens import alone, mixed

TEMPLATE_WEIGHT = 10.0


@dataclass(frozen=True)
class Views(PerStudy):
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


@dataclass(frozen=True)
class Rebuilt(PerStudy):
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


@dataclass(frozen=True)
class ViewLosses(MethodLosses):
    """The terms, unweighted, and their weighted sum."""

    template: Float[Tensor, ""]
    cross: Float[Tensor, ""]
    contrast: Float[Tensor, ""]


class BrainMVP(Method[Views, Rebuilt]):
    """Two views of one sequence: its hidden blocks filled by its template, and by another sequence."""

    headings: ClassVar = ("a study", "what is seen", "rebuilt (template)", "rebuilt (other)")
    reconstruction: ClassVar = {"template": TEMPLATE_WEIGHT, "cross": 1.0}

    @classmethod
    def asked(cls, studies: Studies, grid: Triple, rate: float) -> Views:
        """Draw a sequence, another one, and the blocks of each study."""
        draws = [
            draw(there, grid, rate, rng) for there, rng in zip(studies.present, studies.rngs, strict=True)
        ]
        return Views(
            torch.from_numpy(studies.volume),
            torch.from_numpy(studies.present),
            *as_tensors(draws),
            torch.from_numpy(studies.weight),
        )

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

    def losses(self, answer: Rebuilt, params: PretrainParams, contrast: float) -> ViewLosses:
        """`brainmvp_loss` at the temperature of the run."""
        return brainmvp_loss(answer, params.tau, contrast)

    def pictures(self, views: Views, channel: int) -> list[Float[Tensor, "X Y Z"]]:
        """One sequence: whole, masked, and rebuilt from either view; the first other one is lent."""
        others = views.present[0].nonzero()[:, 0]
        others = others[others != channel]
        target = torch.tensor([channel])
        views = replace(views, target=target, filler=others[:1] if len(others) else target)
        values = self.encoder.decoded(views.volume, views.present)
        hidden, _ = self.hidden(views.blocks)
        rebuilt = [
            self.decoder(self.encoder.body.top(tokens), target).float()[0]
            for tokens in self.tokens(views, values, cross=True)
        ]
        return [values[0, channel], values[0, channel].masked_fill(hidden[0], 0.0), *rebuilt]

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
        hidden, hidden_tokens = self.hidden(views.blocks)
        whole = values[rows, views.target]
        kept = whole.masked_fill(hidden, 0.0)
        lent = cross & (views.filler != views.target)
        filled = torch.where(hidden & lent[:, None, None, None], values[rows, views.filler], kept)
        num = values.shape[1]
        chosen = nn.functional.one_hot(views.target, num).to(values.dtype)
        own = mixed(chosen, stem.each(stem.template))
        fixed = stem.each(stem.template.detach())
        own_fixed, others = mixed(chosen, fixed), mixed(1 - chosen, fixed)
        by_token = hidden_tokens[:, None]
        unlent = by_token & ~lent[:, None, None, None, None]
        view_a = stem.project(alone(kept, views.target, num)) + own * by_token + others
        view_b = stem.project(alone(filled, views.target, num)) + own_fixed * unlent + others
        return view_a, view_b


def brainmvp_loss(rebuilt: Rebuilt, tau: float, contrast_weight: float) -> ViewLosses:
    """10 MSE(dec f(x_A), x_m) + MSE(dec f(x_B), x_m) + L_nce, over the rows that count.

    The contrast is always computed, a weight of 0 included, so that every step has the same graph.

    Args:
        rebuilt: of all ranks (see `Rebuilt.joined`).
        tau: temperature of the contrast.
        contrast_weight: 1 in the last share of the run, 0 before.
    """
    template, cross = row_mean(rebuilt.error_a, rebuilt.weight), row_mean(rebuilt.error_b, rebuilt.weight)
    scale = template.new_tensor(1 / tau)
    counted = rebuilt.weight > 0
    image_a, image_b = standardised((rebuilt.image_a, rebuilt.image_b), counted)
    contrast = contrast_loss(image_a, image_b, counted, scale)
    total = TEMPLATE_WEIGHT * template + cross + contrast_weight * contrast
    return ViewLosses(total, template, cross, contrast)
