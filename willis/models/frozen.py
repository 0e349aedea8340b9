"""What a frozen encoder made of a study, kept in memory by content: nobody is encoded twice."""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

KEPT_BYTES = 1 << 30
"""Per process: ten thousand top grids of the default encoder."""


class KeptTops:
    """Top grids of a frozen encoder, by codes and present sequences.

    Studies are encoded one by one, so that a grid does not depend on who stood beside it in a batch: a run
    that was killed and goes on ends like an undisturbed one.
    """

    def __init__(self, encode: Callable[[Tensor, Tensor], Tensor], limit_bytes: int = KEPT_BYTES) -> None:
        """Keep what `encode` makes.

        Args:
            encode: (1, C, X, Y, Z) codes and (1, C) presence to a top grid; always the same one for the same.
            limit_bytes: once so much is kept, others are encoded whenever they come.
        """
        self._encode = encode
        self._left = limit_bytes
        self._kept: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def tops(self, volume: Tensor, sequence_present: Bool[Tensor, "B C"]) -> Tensor:
        """Top grids of B studies: the kept ones, and others encoded now."""
        return torch.cat(
            [self._top(volume[n : n + 1], sequence_present[n : n + 1]) for n in range(len(volume))]
        )

    def _top(self, volume: Tensor, present: Tensor) -> Tensor:
        key = _digest(volume, present)
        if key in self._kept:
            return self._kept[key]
        top = self._encode(volume, present)
        if top.nbytes <= self._left:
            self._kept[key] = top
            self._left -= top.nbytes
        return top


def _digest(volume: Tensor, present: Tensor) -> bytes:
    summed = hashlib.blake2b(volume.contiguous().numpy().data, digest_size=16)
    summed.update(present.contiguous().numpy().data)
    return summed.digest()
