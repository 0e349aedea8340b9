"""The pictures of a study that a reader sees: which levels, how windowed, how laid out.

Levels are chosen evenly over the brain, and nothing but the brain's extent decides: the choice leaks nothing.
Only where the measured facts are told anyway, half of them are laid through the restricted diffusion.
Pictures follow radiological convention: the patient's left is on the right, the front is at the top.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from willis.cohort.schema import Sequence
from willis.errors import ReportError
from willis.imaging.grid import Grid
from willis.imaging.shards import CODE_RANGES
from willis.reports.writer import Study

UInt8 = npt.NDArray[np.uint8]
Layout = Literal["composite", "panels"]

SHOWN: tuple[Sequence, ...] = ("dwi", "adc", "flair")
"""In this order from left to right, or as red, green and blue. A lesion mask is never shown."""
PICTURE_PX = 112
"""Edge of a composite picture, and of one panel at scale 1."""
PIXEL_MM = 2.0

_WINDOWS: dict[Sequence, tuple[float, float]] = {"dwi": (-2.0, 8.0), "adc": (0.0, 1.6), "flair": (-4.0, 8.0)}
"""Black and white of each sequence, in the unit of `CODE_RANGES`; ADC's 1.6 shows fluid as white."""
_RESTRICTED_ADC, _BRIGHT_DWI = 0.62, 2.0
_PLANES = (("axial", ("R", "L")), ("sagittal", ("P", "A")), ("coronal", ("R", "L")))
"""Name and sides of each plane as it is shown."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture with the words that stand above it.

    Attributes:
        label: where it lies, in words.
        pixels: (H, W, 3) uint8.
        sides: what lies at its left and right edge: the patient's right and left, or P (back) and A (front).
    """

    label: str
    pixels: UInt8
    sides: tuple[str, str] = ("R", "L")


def pictures(
    study: Study, *, layout: Layout, num_slices: int, panel_px: int, through_lesion: bool
) -> tuple[Picture, ...]:
    """Lay out the chosen levels of a study from the feet to the head, then its planes.

    Args:
        study: volumes as codes.
        layout: `composite` puts DWI, ADC and FLAIR of a level into red, green and blue of one small picture;
            `panels` puts them side by side in grey.
        num_slices: at most so many levels.
        panel_px: edge of one panel; composite pictures are always 112 pixels wide.
        through_lesion: lay half of the levels through the restricted diffusion; only for a reader that is
            told the facts.

    Raises:
        ReportError: nothing can be shown.
    """
    shown = [s for s, present in zip(study.sequences, study.sequence_present, strict=True) if present]
    seen = tuple(s for s in SHOWN if s in shown)
    levels = choose_levels(study, num_slices, through_lesion) if seen else ()
    draw = _composite if layout == "composite" else _panels
    made = [
        Picture(level_label(level_mm(study, level), seen, layout), draw(study, level, seen, panel_px))
        for level in levels
    ]
    made += _planes(study, layout, panel_px)
    if not made:
        raise ReportError("the study shows nothing: no DWI, ADC or FLAIR voxel above 0, and no plane")
    return tuple(made)


def choose_levels(study: Study, num_slices: int, through_lesion: bool) -> tuple[int, ...]:
    """Choose axial levels, feet first.

    Without the lesion every n-th level that shows brain is taken, the distance as small as `num_slices`
    allows. With it, half of them follow the restricted diffusion and the rest lie evenly.
    """
    visible = np.flatnonzero((_volumes(study) > 0).any(axis=(0, 1, 2)))
    if len(visible) == 0:
        return ()
    restricted = _restricted_by_level(study) if through_lesion else np.zeros(0)
    if not restricted.any():
        return tuple(int(z) for z in visible[:: -(-len(visible) // num_slices)])
    most = np.argsort(-restricted, kind="stable")[: max(1, num_slices // 2)]
    inside = {int(z) for z in most if restricted[z] > 0}
    rest = [int(z) for z in visible if z not in inside]
    room = num_slices - len(inside)
    evenly = rest[:: max(1, -(-len(rest) // room))] if room else []
    return tuple(sorted(inside | set(evenly)))


def level_mm(study: Study, level: int) -> float:
    """Return the height of a level in MNI millimetres."""
    x, y, z = study.volume.shape[1:]
    return float(Grid((x, y, z), study.spacing_mm).affine[2] @ [0, 0, level, 1])


def _volumes(study: Study) -> UInt8:
    channels = [study.sequences.index(s) for s in SHOWN if s in study.sequences]
    return study.volume[channels]


def _restricted_by_level(study: Study) -> npt.NDArray[np.float64]:
    """Voxels of restricted diffusion per level: ADC below the core's threshold where DWI is bright."""
    place = {s: i for i, s in enumerate(study.sequences) if study.sequence_present[i]}
    if "dwi" not in place or "adc" not in place:
        return np.zeros(0)
    dwi, adc = study.volume[place["dwi"]], study.volume[place["adc"]]
    low = (adc > 0) & (adc < _code("adc", _RESTRICTED_ADC)) & (dwi > _code("dwi", _BRIGHT_DWI))
    counts: npt.NDArray[np.float64] = low.sum(axis=(0, 1)).astype(float)
    return counts


def _code(sequence: Sequence, value: float) -> float:
    span = CODE_RANGES[sequence]
    return 1 + 254 * (value - span.low) / (span.high - span.low)


@lru_cache(maxsize=8)
def grey_levels(sequence: Sequence) -> UInt8:
    """Return the grey of each code of a sequence, (256,); background stays black."""
    black, white = (_code(sequence, edge) for edge in _WINDOWS[sequence])
    grey = np.clip((np.arange(256) - black) / (white - black), 0, 1) * 255
    grey[0] = 0
    rounded: UInt8 = np.rint(grey).astype(np.uint8)
    return rounded


def as_seen(codes: UInt8) -> UInt8:
    """Turn an axial level (..., X, Y) into rows from front to back and columns from right to left."""
    return np.swapaxes(codes, -1, -2)[..., ::-1, ::-1]


def _grey(study: Study, sequence: Sequence, level: int, edge_px: int) -> UInt8:
    """One sequence of one level, (edge, edge), centred."""
    codes = study.volume[study.sequences.index(sequence), :, :, level]
    grey = as_seen(grey_levels(sequence)[codes])
    return _fit(grey, study.spacing_mm[:2], edge_px)


def _fit(grey: UInt8, spacing_mm: tuple[float, ...], edge_px: int) -> UInt8:
    """Bring to square pixels that show `PICTURE_PX * PIXEL_MM` millimetres, and pad or crop to the edge."""
    zoom = edge_px / (PICTURE_PX * PIXEL_MM)
    width, height = round(grey.shape[1] * spacing_mm[0] * zoom), round(grey.shape[0] * spacing_mm[1] * zoom)
    if (width, height) != grey.shape[::-1]:
        from PIL import Image

        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    return centred(grey, edge_px)


def centred(grey: UInt8, edge_px: int) -> UInt8:
    """Pad with black, or crop, around the middle to (..., edge, edge)."""
    out = np.zeros((*grey.shape[:-2], edge_px, edge_px), np.uint8)
    source, target = [], []
    for size in grey.shape[-2:]:
        length = min(size, edge_px)
        source.append(slice((size - length) // 2, (size - length) // 2 + length))
        target.append(slice((edge_px - length) // 2, (edge_px - length) // 2 + length))
    out[..., target[0], target[1]] = grey[..., source[0], source[1]]
    return out


def _composite(study: Study, level: int, seen: tuple[Sequence, ...], panel_px: int) -> UInt8:
    out = np.zeros((PICTURE_PX, PICTURE_PX, 3), np.uint8)
    for channel, sequence in enumerate(SHOWN):
        if sequence in seen:
            out[..., channel] = _grey(study, sequence, level, PICTURE_PX)
    return out


def _panels(study: Study, level: int, seen: tuple[Sequence, ...], panel_px: int) -> UInt8:
    row = np.concatenate([_grey(study, s, level, panel_px) for s in seen], axis=1)
    return np.repeat(row[..., None], 3, axis=2)


def level_label(height_mm: float, seen: tuple[Sequence, ...], layout: Layout) -> str:
    """Return the words above an axial level."""
    names = [s.upper() for s in seen]
    how = "/".join(names) if layout == "composite" else " | ".join(names)
    return f"axial, z {height_mm:+.0f} mm, {how}"


def _planes(study: Study, layout: Layout, panel_px: int) -> list[Picture]:
    """The study's FLAIR planes, in the blue channel or in grey; paint was removed at intake."""
    from PIL import Image

    made = []
    for number, plane in enumerate(() if study.planes is None else study.planes):
        name, sides = _PLANES[number % len(_PLANES)]
        edge = PICTURE_PX if layout == "composite" else panel_px
        # stored with the patient's left on the left (docs/ingest.md); the sagittal one has no side
        turned = plane if name == "sagittal" else plane[:, ::-1]
        if layout == "composite":
            pixels = np.zeros((edge, edge, 3), np.uint8)
            pixels[..., SHOWN.index("flair")] = centred(turned, edge)
        else:
            grey = np.asarray(Image.fromarray(turned).resize((edge, edge), Image.Resampling.BILINEAR))
            pixels = np.repeat(grey[..., None], 3, axis=2)
        if plane.any():
            made.append(Picture(f"{name} plane, FLAIR", pixels, sides))
    return made
