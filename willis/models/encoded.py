"""Cases after their encoders: one vector per modality, and tokens where the fusion looks at tokens."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from willis.cohort.schema import MODALITIES
from willis.models.fusion import Tokens

IMAGE, TEXT, TABLE = range(3)


def presence_of(subsets: Sequence[Collection[str]]) -> Bool[Tensor, "S 3"]:
    """Each subset of the modalities as a row of presence bits."""
    return torch.tensor([[name in subset for name in MODALITIES] for subset in subsets])


@dataclass(frozen=True)
class Encoded:
    """x_v, x_t and x_c before absent ones are replaced; B cases, W shared width, V and L tokens.

    Attributes:
        image_tokens: None unless the fusion reads tokens and the network reads images.
        text_tokens: likewise, of reports.
        text_real: False where a report has no token.
    """

    image: Float[Tensor, "B W"]
    text: Float[Tensor, "B W"]
    table: Float[Tensor, "B W"]
    image_tokens: Float[Tensor, "B V W"] | None = None
    text_tokens: Float[Tensor, "B L W"] | None = None
    text_real: Bool[Tensor, "B L"] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to every tensor."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if value is not None})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All rows of several parts, which one network encoded."""
        names = [field.name for field in fields(cls) if getattr(parts[0], field.name) is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def repeated(self, times: int) -> Self:
        """All rows `times` over, one whole batch after the other."""
        return self.map(lambda tensor: tensor.repeat(times, *(1 for _ in tensor.shape[1:])))

    def with_image_of(self, other: "Encoded") -> Self:
        """The same cases with the images of other ones."""
        return replace(self, image=other.image, image_tokens=other.image_tokens)

    def with_text_of(self, other: "Encoded") -> Self:
        """The same cases with the reports of other ones."""
        return replace(self, text=other.text, text_tokens=other.text_tokens, text_real=other.text_real)

    def tokens(self, present: Bool[Tensor, "B 3"]) -> Tokens:
        """What a token fusion may look at; a modality that is absent, or never read, has no real token."""
        blank = self.table.new_zeros(len(self.table), 1, self.table.shape[1])
        image = blank if self.image_tokens is None else self.image_tokens
        text = blank if self.text_tokens is None else self.text_tokens
        real = torch.zeros_like(present[:, :1]) if self.text_real is None else self.text_real
        return Tokens(
            image=image,
            image_real=present[:, IMAGE, None].expand(image.shape[:2]),
            text=text,
            text_real=present[:, TEXT, None] & real,
        )
