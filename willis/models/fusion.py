"""Ways to join what the image says and what the report says, behind one interface.

A fusion takes one vector per modality (a learned one where the modality is absent), the token fusion tokens
as well, and returns the joined vector and, where it has them, the pair that the two alignment losses compare.

Axis letters: B cases, V image tokens, L report tokens, K tokens of one side, W shared and R contrast width.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MAX_SCALE = 100.0

FusionName = Literal["concat", "add", "cross_attention", "daft", "vdafm_pooled", "vdafm_token", "late"]
LATE: Literal["late"] = "late"
"""No `Fusion`: image and report never meet, each modality makes its own prediction (`head.LateHead`)."""


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
class Tokens:
    """What a token fusion sees beside the two vectors. Where a token is not real, anything may stand.

    Attributes:
        image_real: False in rows without an image.
        text_real: False in rows without a report, and behind the end of a shorter one.
    """

    image: Float[Tensor, "B V W"]
    image_real: Bool[Tensor, "B V"]
    text: Float[Tensor, "B L W"]
    text_real: Bool[Tensor, "B L"]


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


class Fusion(nn.Module):
    """One way for image and report to meet.

    Attributes:
        reads_tokens: the fusion asks for `Tokens`; they are made for no other.
    """

    reads_tokens: ClassVar[bool] = False

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__()

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Join image and report.

        Args:
            image: v = norm(x_v), or the learned vector of an absent image.
            text: e_t = norm(W_t x_t), or the learned vector of an absent report.
            tokens: given if `reads_tokens`.
        """
        raise NotImplementedError


def perceptron(width_in: int, width: int, width_out: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear, GELU, dropout, linear."""
    return nn.Sequential(
        nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width_out)
    )


class Concat(Fusion):
    """f = MLP([v ; e_t])."""

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__(shape, dropout, temperature)
        self.join = perceptron(2 * shape.width, shape.width, shape.contrast_width, dropout)

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Join image and text vectors."""
        return Fused(vector=self.join(torch.cat([image, text], dim=-1)), pair=None)


class Add(Fusion):
    """f = MLP(v + e_t) (docs/method.md, eq. 13)."""

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__(shape, dropout, temperature)
        self.join = perceptron(shape.width, shape.width, shape.contrast_width, dropout)

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Add image and text vectors."""
        return Fused(vector=self.join(image + text), pair=None)


class CrossAttention(Fusion):
    """Each vector asks both, itself among them, and the answers are pooled (docs/method.md, eq. 14 and 15).

    Of the other vector alone a softmax would always make 1, and no query would ever learn.
    """

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__(shape, dropout, temperature)
        self.image_asks = nn.MultiheadAttention(shape.width, shape.heads, dropout, batch_first=True)
        self.text_asks = nn.MultiheadAttention(shape.width, shape.heads, dropout, batch_first=True)
        self.norm = nn.LayerNorm(shape.width)
        self.join = perceptron(shape.width, shape.width, shape.contrast_width, dropout)

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Let both vectors look at each other, and take the mean of what they become."""
        both = torch.stack([image, text], dim=1)
        seen, _ = self.image_asks(image[:, None], both, both, need_weights=False)
        read, _ = self.text_asks(text[:, None], both, both, need_weights=False)
        pooled = (both + torch.cat([seen, read], dim=1)).mean(dim=1)
        return Fused(vector=self.join(self.norm(pooled)), pair=None)


class Daft(Fusion):
    """The report scales and shifts the image: f = MLP((1 + a) * v + b) (docs/method.md, eq. 16 and 17).

    Reference:
        Pölsterl et al., DAFT, MICCAI 2021, arXiv 2107.05990, where a table conditions feature maps; on
        vectors, and around the identity, it is ours.
    """

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__(shape, dropout, temperature)
        width = shape.width
        self.condition = perceptron(2 * width, width // 4, 2 * width)
        self.join = perceptron(width, width, shape.contrast_width, dropout)

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Condition the image vector by both vectors."""
        scale, shift = self.condition(torch.cat([image, text], dim=-1)).chunk(2, dim=-1)
        return Fused(vector=self.join((1 + scale) * image + shift), pair=None)


class LogScale(nn.Module):
    """1 / tau as a learned logarithm, held at most at 100."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / temperature)))

    def forward(self) -> Float[Tensor, ""]:
        """Return 1 / tau."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)


class _Aligned(Fusion):
    """What both forms of VDAFM do once image and report have become one token each (eq. 7 and 9, 10)."""

    def _add_projections(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        width, contrast_width = shape.width, shape.contrast_width
        self.project_image = nn.Linear(width, contrast_width)
        self.project_text = nn.Linear(width, contrast_width)
        self.text_from_image = perceptron(width, width, width)
        self.image_from_text = perceptron(width, width, width)
        self.join = perceptron(2 * contrast_width, contrast_width, contrast_width, dropout)
        self.scale = LogScale(temperature)

    def _projected(self, image_token: Float[Tensor, "B W"], text_token: Float[Tensor, "B W"]) -> Fused:
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


class VdafmPooled(_Aligned):
    """VDAFM with one pooled token per modality (docs/method.md, eq. 4 to 7).

    Reference:
        arXiv 2605.14710; written from its equations.
    """

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__(shape, dropout, temperature)
        width = shape.width
        self.to_text_space = perceptron(width, width, width)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, shape.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.kind = nn.Parameter(torch.randn(2, width) * 0.02)
        self._add_projections(shape, dropout, temperature)

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Let the two tokens attend to each other, then join their projections."""
        both = torch.stack([self.to_text_space(image), text], dim=1) + self.kind
        image_token, text_token = self.transformer(both).unbind(dim=1)
        return self._projected(image_token, text_token)


class BothWays(nn.Module):
    """One layer of attention both ways: each side's tokens ask the other's, then think for themselves."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.image_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.image_asks = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.text_asks = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.image_mlp = nn.Sequential(nn.LayerNorm(width), perceptron(width, 2 * width, width, dropout))
        self.text_mlp = nn.Sequential(nn.LayerNorm(width), perceptron(width, 2 * width, width, dropout))

    def forward(self, tokens: Tokens) -> Tokens:
        """Each token takes from the other side what it asks for; nobody sees a token that is not real."""
        image, text = self.image_norm(tokens.image), self.text_norm(tokens.text)
        seen, _ = self.image_asks(image, text, text, key_padding_mask=~tokens.text_real, need_weights=False)
        read, _ = self.text_asks(text, image, image, key_padding_mask=~tokens.image_real, need_weights=False)
        image, text = tokens.image + seen, tokens.text + read
        image, text = image + self.image_mlp(image), text + self.text_mlp(text)
        return Tokens(image, tokens.image_real, text, tokens.text_real)


class VdafmToken(_Aligned):
    """VDAFM token by token: the image conditions the report, then attention both ways (eq. 18 to 21).

    Each side's vector is its first token, the only one where the modality is absent. No token is told its
    place: the frozen encoder and the image encoder's learned vectors of place have done so before.

    Reference:
        arXiv 2605.14710 for the losses and the conditioning by the image; the token form is ours.
    """

    reads_tokens: ClassVar[bool] = True

    def __init__(self, shape: FusionShape, dropout: float, temperature: float) -> None:
        super().__init__(shape, dropout, temperature)
        width = shape.width
        self.to_text_space = perceptron(width, width, width)
        self.image_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.condition = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)
        self.layers = nn.ModuleList(BothWays(width, shape.heads, dropout) for _ in range(shape.layers))
        self.image_end, self.text_end = nn.LayerNorm(width), nn.LayerNorm(width)
        self._add_projections(shape, dropout, temperature)

    def forward(
        self, image: Float[Tensor, "B W"], text: Float[Tensor, "B W"], tokens: Tokens | None = None
    ) -> Fused:
        """Condition, attend both ways, pool each side to one token, and join the projections."""
        assert tokens is not None, "TrimodalNetwork.fuse gives tokens to a fusion that reads them"
        images, image_real = led(self.to_text_space(image), tokens.image, tokens.image_real, self.image_norm)
        texts, text_real = led(text, tokens.text, tokens.text_real, self.text_norm)
        gamma, beta = self.condition(image)[:, None].chunk(2, dim=-1)
        met = Tokens(images, image_real, (1 + gamma) * texts + beta, text_real)
        for layer in self.layers:
            met = layer(met)
        return self._projected(
            self.image_end(pooled(met.image, image_real)), self.text_end(pooled(met.text, text_real))
        )


def led(
    vector: Float[Tensor, "B W"], tokens: Float[Tensor, "B K W"], real: Bool[Tensor, "B K"], norm: nn.Module
) -> tuple[Float[Tensor, "B K+1 W"], Bool[Tensor, "B K+1"]]:
    """Put a side's vector, always real, before its tokens; what stands where none is real is blanked."""
    blanked = norm(torch.where(real[..., None], tokens, 0.0))
    real = torch.cat([torch.ones_like(real[:, :1]), real], dim=1)
    return torch.cat([vector[:, None], blanked], dim=1), real


def pooled(tokens: Float[Tensor, "B K W"], real: Bool[Tensor, "B K"]) -> Float[Tensor, "B W"]:
    """The first token plus the mean of the real ones, the first among them."""
    kept = torch.where(real[..., None], tokens, 0.0)
    return tokens[:, 0] + kept.sum(dim=1) / real.sum(dim=1, keepdim=True)


FUSIONS: dict[FusionName, type[Fusion]] = {
    "concat": Concat,
    "add": Add,
    "cross_attention": CrossAttention,
    "daft": Daft,
    "vdafm_pooled": VdafmPooled,
    "vdafm_token": VdafmToken,
}
