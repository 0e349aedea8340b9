"""From vectors to the logit: the head behind a fusion, the heads of late fusion, the roads, the Rankin scale.

Axis letters: B cases, J width of what a head reads, W shared width, R contrast width; 3 modalities in the
order of `schema.MODALITIES`.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from willis.cohort.schema import MODALITIES, POOR_FROM

LateWeights = Literal["learned", "entropy"]
RoadsName = Literal["shared", "by_pattern"]

NUM_CUTS = 6
"""mRS 0 to 6 is cut in six places: is it above 0, above 1, ... above 5?"""
SPAN = 5.0
"""Log-odds from the first cut to the last before anything is learned."""


class Head(nn.Module):
    """[x_c ; f ; presence bits] to what the fusion says, and the fused embedding (docs/method.md, eq. 8).

    The last layer starts at the prevalence, whatever it is shown: the network begins as the sum of its roads.
    """

    def __init__(self, width_in: int, width: int, dropout: float, prevalence: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width_in, width), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.logit = nn.Linear(width, 1)
        nn.init.zeros_(self.logit.weight)
        share = min(max(prevalence, 0.01), 0.99)
        nn.init.constant_(self.logit.bias, math.log(share / (1 - share)))

    def forward(self, joined: Float[Tensor, "B J"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B R"]]:
        """Return the share of the logit and the fused embedding."""
        embedding = self.hidden(joined)
        return self.logit(self.dropout(embedding)).squeeze(-1), embedding


class Roads(nn.Module):
    """A straight way from each modality to the logit, past the fusion: b_m (u_m + u_bm) . x_m, from zero.

    Layer norm takes the size from a vector, and a few hundred patients can teach a fusion the strongest
    modality alone; a sum is learned from few. By pattern, what a modality says also depends on which others
    are there: a table counts for more where there is no image (docs/method.md, eq. 8).
    """

    def __init__(self, width: int, name: RoadsName = "shared") -> None:
        super().__init__()
        num = len(MODALITIES)
        self.weight = nn.Parameter(torch.zeros(num, width))
        self.of_pattern = nn.Parameter(torch.zeros(2**num, num, width)) if name == "by_pattern" else None

    def forward(self, vectors: Float[Tensor, "B 3 W"], present: Bool[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
        """What each modality says by itself, 0 where it is absent."""
        weight: Tensor = self.weight
        if self.of_pattern is not None:
            weight = weight + self.of_pattern[pattern_of(present)]
        return torch.where(present, (vectors * weight).sum(dim=-1), 0.0)


def pattern_of(present: Bool[Tensor, "B 3"]) -> Int[Tensor, " B"]:
    """Number each pattern of presence, 0 (nothing) to 7 (all)."""
    places = torch.arange(present.shape[1], device=present.device)
    return (present.long() << places).sum(dim=1)


class LateHead(nn.Module):
    """One head per modality, and the average of those that are present (docs/method.md, eq. 22 to 24, 50).

    Nothing joins two modalities before each has made its own prediction: h_m, head and road are those of m.
    Log-odds are averaged, not probabilities, so that the cuts of the Rankin scale shift an average as they
    shift each prediction. The weights start equal; by entropy, a head that is unsure of a case counts less.
    """

    def __init__(
        self, width_in: int, width: int, dropout: float, prevalence: float, weights: LateWeights = "learned"
    ) -> None:
        super().__init__()
        self.by_entropy = weights == "entropy"
        self.heads = nn.ModuleList(Head(width_in, width, dropout, prevalence) for _ in MODALITIES)
        self.log_weight = nn.Parameter(torch.zeros(len(MODALITIES)))

    def forward(
        self, vectors: Float[Tensor, "B 3 W"], own: Float[Tensor, "B 3"], present: Bool[Tensor, "B 3"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B R"]]:
        """Average what the present modalities say by themselves.

        Args:
            vectors: normed, with a learned vector where a modality is absent.
            own: of the roads; they are part of each modality's own prediction.
            present: whose predictions count.

        Returns:
            The logit, and the average of the heads' embeddings.
        """
        said = [head(vectors[:, m]) for m, head in enumerate(self.heads)]
        logits = torch.stack([logit for logit, _ in said], dim=1) + own
        embeddings = torch.stack([embedding for _, embedding in said], dim=1)
        weights = self.weights(present, logits)
        return (weights * logits).sum(dim=1), (weights[..., None] * embeddings).sum(dim=1)

    def weights(self, present: Bool[Tensor, "B 3"], logits: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
        """Weights that add up to 1 over the present modalities; over all three where none is present."""
        speaks = present | ~present.any(dim=1, keepdim=True)
        log_weight = self.log_weight - entropy(logits.detach()) if self.by_entropy else self.log_weight
        return log_weight.masked_fill(~speaks, -torch.inf).softmax(dim=1)


def entropy(logit: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """How unsure a prediction is of poor against good, in nats: 0 to log 2."""
    return nn.functional.softplus(logit) - logit * logit.sigmoid()


class Grades(nn.Module):
    """Where an ordinal scale is cut, relative to the one cut that the logit is about.

    logit_k = logit - d_k, d rising by a positive gap per grade and 0 at that cut: proportional odds
    (McCullagh 1980). On the Rankin scale it lies between 2 and 3.
    """

    def __init__(self, num_cuts: int = NUM_CUTS, poor_from: int = POOR_FROM) -> None:
        super().__init__()
        self.poor_from = poor_from
        gap = SPAN / (num_cuts - 1)
        self.gaps = nn.Parameter(torch.full((num_cuts - 1,), math.log(math.expm1(gap))))

    def forward(self) -> Float[Tensor, " K"]:
        """Return d_0 to d_(K-1); all gaps start alike, at 1 on the Rankin scale."""
        rising = torch.cat([self.gaps.new_zeros(1), nn.functional.softplus(self.gaps).cumsum(0)])
        return rising - rising[self.poor_from - 1]
