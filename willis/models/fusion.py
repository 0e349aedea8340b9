"""Ways to join what the image says and what the report says, behind one interface.

A fusion takes one vector per modality (a learned one where the modality is absent) and returns the joined
vector and, where it has them, the pair that the two alignment losses compare.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

MAX_SCALE = 100.0

FusionName = Literal["concat", "vdafm_pooled"]


@dataclass(frozen=True)
class Pair:
    """What the alignment losses compare; R contrast width, W shared width.

    Attributes:
        image: z_v, the image in the contrast space.
        text: z_t, the text in the contrast space.
        image_token: E_v, the image token after the transformer.
        text_token: E_t, likewise.
        text_from_image: g_v(E_v), a guess at E_t.
        image_from_text: g_t(E_t), a guess at E_v.
        scale: 1 / tau of the contrast, learned.
    """

    image: Float[Tensor, "B R"]
    text: Float[Tensor, "B R"]
    image_token: Float[Tensor, "B W"]
    text_token: Float[Tensor, "B W"]
    text_from_image: Float[Tensor, "B W"]
    image_from_text: Float[Tensor, "B W"]
    scale: Float[Tensor, ""]


@dataclass(frozen=True)
class Fused:
    """The joined vector, and the pair to align (None for a fusion without one)."""

    vector: Float[Tensor, "B R"]
    pair: Pair | None


@dataclass(frozen=True)
class FusionShape:
    """Widths, layers and heads of a fusion."""

    width: int
    contrast_width: int
    layers: int
    heads: int


class LogScale(nn.Module):
    """1 / tau as a learned logarithm, held at most at 100."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / temperature)))

    def forward(self) -> Float[Tensor, ""]:
        """Return 1 / tau."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)


def perceptron(width_in: int, width: int, width_out: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear, GELU, dropout, linear."""
    return nn.Sequential(
        nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width_out)
    )


class Concat(nn.Module):
    """f = MLP([x_v ; e_t])."""

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__()
        self.join = perceptron(2 * shape.width, shape.width, shape.contrast_width, dropout)

    def forward(self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"]) -> Fused:
        """Join image and text vectors."""
        return Fused(vector=self.join(torch.cat([image, text], dim=-1)), pair=None)


class VdafmPooled(nn.Module):
    """VDAFM with one pooled token per modality (docs/method.md, eq. 4 to 8).

    Reference:
        arXiv 2605.14710; written from its equations.
    """

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__()
        width, contrast_width = shape.width, shape.contrast_width
        self.to_text_space = perceptron(width, width, width)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, shape.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.kind = nn.Parameter(torch.randn(2, width) * 0.02)
        self.project_image = nn.Linear(width, contrast_width)
        self.project_text = nn.Linear(width, contrast_width)
        self.text_from_image = perceptron(width, width, width)
        self.image_from_text = perceptron(width, width, width)
        self.join = perceptron(2 * contrast_width, contrast_width, contrast_width, dropout)
        self.scale = LogScale(temperature)

    def forward(self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"]) -> Fused:
        """Let the two tokens attend to each other, then join their projections.

        Args:
            image: v = W_v x_v, or the learned vector of an absent image.
            text: e_t = W_t x_t, or the learned vector of an absent report.
        """
        tokens = torch.stack([self.to_text_space(image), text], dim=1) + self.kind
        image_token, text_token = self.transformer(tokens).unbind(dim=1)
        z_image, z_text = self.project_image(image_token), self.project_text(text_token)
        pair = Pair(
            image=z_image,
            text=z_text,
            image_token=image_token,
            text_token=text_token,
            text_from_image=self.text_from_image(image_token),
            image_from_text=self.image_from_text(text_token),
            scale=self.scale(),
        )
        return Fused(vector=self.join(torch.cat([z_image, z_text], dim=-1)), pair=pair)


FUSIONS: dict[FusionName, type[Concat] | type[VdafmPooled]] = {"concat": Concat, "vdafm_pooled": VdafmPooled}
