"""Which split a patient belongs to: a hash of the id decides, so nobody moves as the cohort grows."""

import hashlib
from typing import TYPE_CHECKING

from willis.cohort.schema import SPLITS

if TYPE_CHECKING:
    from willis.params import SplitShares


def split_of(patient_id: str, shares: "SplitShares") -> str:
    """Name the split of one patient.

    Args:
        patient_id: the id as stored; its SHA-256 places it on [0, 1).
        shares: lengths of the four pieces of [0, 1), in the order of `schema.SPLITS`.
    """
    place = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big") / 2**64
    edge = 0.0
    for name in SPLITS:
        edge += getattr(shares, name)
        if place < edge:
            return name
    return max(SPLITS, key=lambda name: getattr(shares, name))
