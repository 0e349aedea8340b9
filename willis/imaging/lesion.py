"""Finding the acute infarct and measuring it: the facts that every later step calls by these names.

Volumes are measured on the grid on which the lesion was seen, before any resampling; sides, territories and
loads are read in MNI space, where x < 0 is the patient's left.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from willis.imaging.grid import filled_voxels
from willis.imaging.territory import ArterialMap, Region
from willis.imaging.tract import corticospinal_share
from willis.imaging.volume import Volume

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Laterality = Literal["left", "right", "bilateral", "midline", "none"]
Territory = Literal["aca", "mca", "pca", "vertebrobasilar", "lacune", "multiple", "none"]

MINOR_SIDE_SHARE = 0.10
"""A side that holds less of the lesion than this does not make it bilateral."""
MIDLINE_MM = 6.0
"""One lesion across the midline whose centre lies nearer than this is midline, not bilateral."""
MAIN_TERRITORY_SHARE = 0.60
"""Below this share in one artery's territory, the territory is `multiple`."""
LACUNE_ML = 1.8
"""A sphere of 15 mm, the usual upper size of a lacunar infarct (STRIVE, Lancet Neurol 12:822, 2013)."""
BRIGHT_DEVIATIONS, SEED_DEVIATIONS = 1.5, 2.5
"""An infarct's DWI above the brain's median, in robust deviations: every voxel; one, after smoothing."""
SMOOTHING_MM = 1.5
"""Standard deviation of that smoothing."""
FLAIR_VISIBLE_RATIO = 1.15
"""FLAIR signal in the lesion over that of the mirrored tissue, from which it counts as visible."""


class Load(BaseModel):
    """Lesion volume in one arterial region; None when the lesion is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    volume_ml: float | None


class Facts(BaseModel):
    """What was measured from one study. None means not known, never zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    infarct_present: bool | None = None
    volume_ml: float | None = None
    num_lesions: int | None = None
    laterality: Laterality | None = None
    territory: Territory | None = None
    corticospinal_share: float | None = None
    adc_lesion_mm2_s: float | None = None
    dwi_ratio: float | None = None
    flair_ratio: float | None = None
    dwi_flair_mismatch: bool | None = None
    midline_shift_mm: float | None = None
    flair_dark_share: float | None = None
    flair_bright_share: float | None = None
    loads: tuple[Load, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """Flatten for one parquet row: every field, and `load_<region>` per load in ml."""
        row = self.model_dump(exclude={"loads"})
        return row | {f"load_{load.region}": load.volume_ml for load in self.loads}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Read back what `to_row` flattened; NaN and NaT are None, other columns are ignored."""
        known = {name: None if _is_missing(value) else value for name, value in row.items()}
        loads = tuple(
            Load(region=name.removeprefix("load_"), volume_ml=value)
            for name, value in known.items()
            if name.startswith("load_")
        )
        return cls(**{name: known.get(name) for name in cls.model_fields if name != "loads"}, loads=loads)


def _is_missing(value: object) -> bool:
    return value is None or value != value  # NaN and NaT differ from themselves


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion on the grid it was seen on: its voxels, components, and their places in MNI millimetres.

    Attributes:
        shape: of that grid.
        index: (N, 3) voxels.
        num_components: connected by faces, edges or corners.
        points_mm: (N, 3) voxel centres in MNI space.
        voxel_ml: volume of one voxel on that grid.
    """

    shape: tuple[int, ...]
    index: npt.NDArray[np.int64]
    num_components: int
    points_mm: npt.NDArray[np.float64]
    voxel_ml: float

    @property
    def volume_ml(self) -> float:
        """Volume on the grid that it was seen on."""
        return len(self.points_mm) * self.voxel_ml


def find_infarct(dwi: Volume, adc: Float32, brain: Bool, adc_below_mm2_s: float) -> Bool:
    """Find restricted diffusion: ADC below the threshold where DWI is bright.

    A component counts only where it holds at one place after light smoothing too: single voxels of noise and
    thin rims of distortion do not, infarcts do.

    Args:
        dwi: the diffusion-weighted volume.
        adc: same grid, mm^2/s.
        brain: same grid.
        adc_below_mm2_s: the threshold; 620e-6 is the ischemic core (Purushotham, Int J Stroke 10:348, 2015).

    Returns:
        (X, Y, Z) mask, before small components are removed.
    """
    from scipy import ndimage

    middle, deviation = robust_scale(dwi.data[brain])
    bright = dwi.data > middle + BRIGHT_DEVIATIONS * deviation
    mask = brain & bright & (adc < adc_below_mm2_s) & (adc > 0)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    widths = [SMOOTHING_MM / edge for edge in dwi.spacing_mm]
    weight = np.maximum(ndimage.gaussian_filter(brain.astype(np.float32), widths, truncate=3), 0.01)
    smooth_dwi = ndimage.gaussian_filter(np.where(brain, dwi.data, 0), widths, truncate=3) / weight
    smooth_adc = ndimage.gaussian_filter(np.where(brain, adc, 0), widths, truncate=3) / weight
    seed = (smooth_dwi > middle + SEED_DEVIATIONS * deviation) & (smooth_adc < adc_below_mm2_s)
    holds = np.zeros(count + 1, bool)
    holds[np.unique(labels[mask & seed])] = True
    holds[0] = False
    found: Bool = holds[labels]
    return found


def robust_scale(values: Float32) -> tuple[float, float]:
    """Return median and 1.4826 x median absolute deviation (at least a millionth of the median)."""
    if values.size == 0:
        return 0.0, 1.0
    middle = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, max(deviation, abs(middle) * 1e-6, 1e-12)


def gather(mask: Bool, to_standard: npt.NDArray[np.float64], voxel_ml: float, min_lesion_ml: float) -> Lesion:
    """Keep the components of at least `min_lesion_ml` and note where they are.

    Args:
        mask: (X, Y, Z).
        to_standard: voxel index to MNI millimetres, (4, 4).
        voxel_ml: volume of one voxel.
        min_lesion_ml: smaller components are taken for noise; 0 keeps all.
    """
    from scipy import ndimage

    index = filled_voxels(mask)
    if len(index) == 0:
        return Lesion(mask.shape, index, 0, np.zeros((0, 3)), voxel_ml)
    first = index.min(axis=0)
    box = tuple(slice(a, b + 1) for a, b in zip(first, index.max(axis=0), strict=True))
    labels, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    own = labels[tuple((index - first).T)]
    large = np.bincount(own, minlength=count + 1) * voxel_ml >= min_lesion_ml
    large[0] = False
    index = index[large[own]]
    points = index @ to_standard[:3, :3].T + to_standard[:3, 3]
    return Lesion(mask.shape, index, int(large.sum()), points, voxel_ml)


@dataclass(frozen=True)
class Signals:
    """The lesion's ADC, and its mean signal over that of the mirrored tissue; None when not known."""

    adc_mm2_s: float | None = None
    dwi_ratio: float | None = None
    flair_ratio: float | None = None


def measure(lesion: Lesion, territories: ArterialMap, signals: Signals) -> Facts:
    """Turn a lesion into facts.

    Args:
        lesion: from `gather`; empty means that no infarct was seen.
        territories: the map in MNI space.
        signals: what the sequences show inside it.
    """
    labels = territories.at(lesion.points_mm)
    counts = np.bincount(labels, minlength=len(territories.regions) + 1)[1:]
    loads = tuple(
        Load(region=region.name, volume_ml=float(count * lesion.voxel_ml))
        for region, count in zip(territories.regions, counts, strict=True)
    )
    if lesion.num_components == 0:
        nothing = Facts(infarct_present=False, volume_ml=0.0, num_lesions=0, laterality="none")
        return nothing.model_copy(update={"territory": "none", "corticospinal_share": 0.0, "loads": loads})
    mismatch = None if signals.flair_ratio is None else signals.flair_ratio < FLAIR_VISIBLE_RATIO
    return Facts(
        infarct_present=True,
        volume_ml=lesion.volume_ml,
        num_lesions=lesion.num_components,
        laterality=laterality(lesion),
        territory=territory(counts, territories.regions, lesion),
        corticospinal_share=corticospinal_share(lesion.points_mm, lesion.voxel_ml),
        adc_lesion_mm2_s=signals.adc_mm2_s,
        dwi_ratio=signals.dwi_ratio,
        flair_ratio=signals.flair_ratio,
        dwi_flair_mismatch=mismatch,
        loads=loads,
    )


def unknown_facts(territories: ArterialMap) -> Facts:
    """Facts of a study in which no lesion can be looked for (no mask, and no DWI with ADC)."""
    return Facts(loads=tuple(Load(region=region.name, volume_ml=None) for region in territories.regions))


def laterality(lesion: Lesion) -> Laterality:
    """Name the side by the lesion's voxels on either side of x = 0; a voxel on it counts half for each."""
    x = lesion.points_mm[:, 0]
    left = float((x < 0).sum() + 0.5 * (x == 0).sum()) / len(x)
    if min(left, 1 - left) < MINOR_SIDE_SHARE:
        return "left" if left > 0.5 else "right"
    if lesion.num_components == 1 and abs(float(x.mean())) <= MIDLINE_MM:
        return "midline"
    return "bilateral"


def territory(counts: npt.NDArray[np.int64], regions: tuple[Region, ...], lesion: Lesion) -> Territory:
    """Name the artery that holds most of the lesion; small and deep is lacune, no clear artery multiple."""
    shares: dict[str, int] = {}
    deep = 0
    for count, region in zip(counts, regions, strict=True):
        shares[region.artery] = shares.get(region.artery, 0) + int(count)
        deep += int(count) if region.deep else 0
    shares.pop("none", None)
    named = sum(shares.values())
    if named == 0:
        return "none"
    if lesion.num_components == 1 and lesion.volume_ml <= LACUNE_ML and deep > 0.5 * named:
        return "lacune"
    main = max(shares, key=lambda artery: shares[artery])
    return main if shares[main] >= MAIN_TERRITORY_SHARE * named else "multiple"  # type: ignore[return-value]


def mirrored_ratio(values: Float32, lesion: Bool, brain: Bool) -> float | None:
    """Mean of the lesion over the mean of its mirror image on the healthy side.

    Args:
        values: (X, Y, Z) on a grid whose X axis is symmetric about the midline.
        lesion: same grid.
        brain: same grid.

    Returns:
        The ratio; the brain's median stands in where less than a tenth of the mirror image is healthy brain;
        None without lesion or signal.
    """
    if not lesion.any():
        return None
    healthy = lesion[::-1] & brain & ~lesion
    enough = healthy.sum() >= 0.1 * lesion.sum()
    normal = float(values[healthy].mean()) if enough else float(np.median(values[brain & ~lesion]))
    ratio = float(values[lesion].mean()) / normal if normal > 0 else math.nan
    return ratio if math.isfinite(ratio) else None
