"""What an absent modality would have said, guessed from those that are there (docs/method.md, eq. 47 to 49).

Axis letters: B cases, W shared width; 3 modalities in the order of `schema.MODALITIES`.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from willis.cohort.schema import MODALITIES

AbsentName = Literal["learned", "imputed"]


@dataclass(frozen=True)
class Imputation:
    """How far the guesses were from what they stand for.

    Attributes:
        error: mean square over the width; 0 where it is not asked.
        asked: the modality is present, and another one to guess it from.
    """

    error: Float[Tensor, "B 3"]
    asked: Bool[Tensor, "B 3"]

    def columns(self) -> list[Tensor]:
        """Its tensors, in order."""
        return [getattr(self, field.name) for field in fields(self)]

    def loss(self, weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Mean over what is asked in the rows that count; 0, still attached, when nothing is."""
        counted = weight[:, None] * self.asked
        return (self.error.float() * counted).sum() / counted.sum().clamp(min=1e-9)


class Imputer(nn.Module):
    """A small network per modality, which sees the others that are present and which ones they are.

    It starts at 0, so that an absent modality's learned vector is where the guesses start. It reads and does
    not teach: no gradient leaves it for the encoders, neither from a guess nor from a target.

    Reference:
        arXiv 2508.09195, brought to one vector per modality.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        num = len(MODALITIES)
        self.guesses = nn.ModuleList(
            nn.Sequential(nn.Linear(num * width + num, width), nn.GELU(), nn.Linear(width, width))
            for _ in MODALITIES
        )
        for guess in self.guesses:
            nn.init.zeros_(guess[-1].weight)  # type: ignore[index,arg-type]
            nn.init.zeros_(guess[-1].bias)  # type: ignore[index,arg-type]

    def forward(
        self, vectors: Float[Tensor, "B 3 W"], present: Bool[Tensor, "B 3"], start: Float[Tensor, "3 W"]
    ) -> tuple[Float[Tensor, "B 3 W"], Imputation]:
        """Guess every modality from the others.

        Args:
            vectors: normed; those of absent modalities are never looked at.
            present: which ones are there.
            start: the learned vectors of absence, which the guesses are added to.

        Returns:
            What may stand for each modality, and how far that is from those that are present: an absent one
            is never scored.
        """
        known = torch.where(present[..., None], vectors.detach(), 0.0)
        seen = present[:, None] & ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
        shown = torch.where(seen[..., None], known[:, None], 0.0).flatten(2)
        asked = torch.cat([shown, seen.to(shown.dtype)], dim=-1)
        guessed = start + torch.stack([guess(asked[:, m]) for m, guess in enumerate(self.guesses)], dim=1)
        scored = present & seen.any(dim=-1)
        error = torch.where(scored, (guessed - known).square().mean(dim=-1), 0.0)
        return guessed, Imputation(error, scored)
