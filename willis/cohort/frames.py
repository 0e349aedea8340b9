"""Frames of a DICOM file: one in a classic file, many in an enhanced one, whose facts stand in groups."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def text_of(header: "Dataset", keyword: str) -> str:
    """An attribute as text: from the top, else from the groups of all frames or of the first; "" for none."""
    if keyword in header:
        return str(header[keyword].value or "")
    for group in (*(header.get(_SHARED) or ())[:1], *(header.get(_PER_FRAME) or ())[:1]):
        for element in group.iterall():
            if element.keyword == keyword:
                return str(element.value or "")
    return ""


def number_of(header: "Dataset", *keywords: str) -> float:
    """The first of the attributes that says a number above 0, found as by `text_of`; 0 for none.

    An attribute of several values counts by its first.
    """
    for keyword in keywords:
        first = text_of(header, keyword).strip("[] ").partition(",")[0]
        if first and float(first) > 0:
            return float(first)
    return 0.0


def b_values(header: "Dataset") -> frozenset[float]:
    """The b-values in s/mm^2 that an enhanced object's frames name; empty for a classic file."""
    groups = (*(header.get(_SHARED) or ()), *(header.get(_PER_FRAME) or ()))
    return frozenset(
        float(part.DiffusionBValue)
        for group in groups
        for part in group.get("MRDiffusionSequence") or ()
        if "DiffusionBValue" in part
    )


def positions(header: "Dataset") -> list[tuple[float, ...]]:
    """Where each frame lies, in mm; () where the object does not say."""
    frames = header.get(_PER_FRAME)
    if not frames:
        num_frames = int(header.get("NumberOfFrames") or 1)
        return [tuple(header.get("ImagePositionPatient") or ())] * num_frames
    planes = ((frame.get("PlanePositionSequence") or [frame])[0] for frame in frames)
    return [tuple(plane.get("ImagePositionPatient") or ()) for plane in planes]
