"""What FLAIR shows beside the acute infarct: the state of the brain that the stroke met.

Fluid is dark, white-matter disease and old scars are bright. Their shares stand for atrophy and
leukoaraiosis, which go with a worse outcome whatever the infarct is ("brain frailty": Appleton et al.,
Neurology 94:e439, 2020).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DARK_BELOW, BRIGHT_ABOVE = 0.55, 1.5
"""Times the brain's median FLAIR signal; docs/real-patients.md says how they were chosen."""
MIN_VALUES = 100
"""Fewer say nothing of a brain."""


@dataclass(frozen=True)
class FlairShares:
    """Shares of the brain beside the acute infarct, 0 to 1; None where FLAIR does not tell."""

    flair_dark_share: float | None = None
    flair_bright_share: float | None = None


def flair_shares(brain: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> FlairShares:
    """Measure the shares of dark and of bright brain.

    Args:
        brain: FLAIR signal of any shape and unit, of the brain without the acute infarct; what is not above 0
            is no brain.
    """
    signal = brain[brain > 0].astype(np.float32)
    if signal.size < MIN_VALUES:
        return FlairShares()
    ratio = signal / np.median(signal)
    return FlairShares(float((ratio < DARK_BELOW).mean()), float((ratio > BRIGHT_ABOVE).mean()))
