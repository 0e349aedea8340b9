"""An FT-Transformer: every column of a table is a token, and attention lets columns meet.

Axis letters: B cases, F columns, E token width, W width of the answer.

Reference:
    Gorishniy et al., NeurIPS 2021, arXiv 2106.11959. Ours: what is not known has an embedding of its own, and
    a category has one token per level, as it has columns.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

TOKEN_WIDTH = 64
BLOCKS = 2
HEADS = 4
HIDDEN = 4 * TOKEN_WIDTH // 3


class FeatureTransformer(nn.Module):
    """What a token of its own, [CLS], has learned from the columns' tokens (docs/method.md, eq. 3a to 3d)."""

    def __init__(self, num_columns: int, width: int, dropout: float) -> None:
        super().__init__()
        self.slope = _embeddings(num_columns)
        self.column = _embeddings(num_columns)
        self.unknown = _embeddings(num_columns)
        self.summary = _embeddings(1)
        self.blocks = nn.ModuleList(FeatureBlock(dropout, first=at == 0) for at in range(BLOCKS))
        self.answer = nn.Sequential(nn.LayerNorm(TOKEN_WIDTH), nn.ReLU(), nn.Linear(TOKEN_WIDTH, width))

    def forward(self, values: Float[Tensor, "B F"], missing: Bool[Tensor, "B F"]) -> Float[Tensor, "B W"]:
        """Embed rows.

        Args:
            values: standardised; anything finite where missing.
            missing: True where the column's embedding of the unknown is its token.
        """
        tokens = torch.cat([self.summary.expand(len(values), 1, -1), self.tokens(values, missing)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        answer: Tensor = self.answer(tokens[:, 0])
        return answer

    def tokens(self, values: Float[Tensor, "B F"], missing: Bool[Tensor, "B F"]) -> Float[Tensor, "B F E"]:
        """One token per column: b_j + s_j w_j, or u_j where it is missing."""
        return torch.where(missing[..., None], self.unknown, self.column + values[..., None] * self.slope)


class FeatureBlock(nn.Module):
    """Attention over all tokens, then ReGLU for each; norms come first, but none before all."""

    def __init__(self, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if first else nn.LayerNorm(TOKEN_WIDTH)
        self.attend = nn.MultiheadAttention(TOKEN_WIDTH, HEADS, dropout, batch_first=True)
        self.think = nn.Sequential(
            nn.LayerNorm(TOKEN_WIDTH), ReGLU(), nn.Dropout(dropout), nn.Linear(HIDDEN, TOKEN_WIDTH)
        )

    def forward(self, tokens: Float[Tensor, "B K E"]) -> Float[Tensor, "B K E"]:
        """Tokens to tokens; nobody is told a place, so the order of columns means nothing."""
        normed = self.norm(tokens)
        found, _ = self.attend(normed, normed, normed, need_weights=False)
        tokens = tokens + found
        thought: Tensor = tokens + self.think(tokens)
        return thought


class ReGLU(nn.Module):
    """a * relu(b), [a ; b] = W x (Shazeer, arXiv 2002.05202)."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(TOKEN_WIDTH, 2 * HIDDEN)

    def forward(self, tokens: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows H"]:
        """(..., token width) to (..., hidden width)."""
        value, gate = self.both(tokens).chunk(2, dim=-1)
        gated: Tensor = value * gate.relu()
        return gated


def _embeddings(number: int) -> nn.Parameter:
    """As linear maps start: even within 1 / sqrt(E)."""
    bound = TOKEN_WIDTH**-0.5
    return nn.Parameter(torch.empty(number, TOKEN_WIDTH).uniform_(-bound, bound))
