"""Where a lesion lies and how it grows: a fixed library of growth orders in atlas space.

A growth order is a seed in one territory and hemisphere together with a rule that ranks all tissue of that
territory by how soon a growing infarct reaches it. "The first n voxels of order k" is a lesion, so its harm
to the corticospinal tract and to eloquent tissue is a function of (k, volume) that is tabulated once. The
same two numbers drive the outcome, the ceilings and, through the patient's own warp, the image.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from willis.cohort.anatomy import (
    ACA,
    LACUNE,
    MCA,
    PCA,
    TERRITORIES,
    VERTEBROBASILAR,
    Anatomy,
    Floats,
    load_anatomy,
)
from willis.imaging.grid import Grid

GRID = Grid((88, 104, 40), (2.0, 2.0, 4.0))
"""The canonical grid of the project: the cohort is sampled on it directly."""

ORDERS_PER_SIDE = 40
NUM_ORDERS = len(TERRITORIES) * 2 * ORDERS_PER_SIDE
TISSUE_SHARE = 0.75
"""A voxel can infarct when at least this share of it is brain tissue."""

CURVE_ML = np.concatenate([[0.0], np.geomspace(0.05, 320.0, 47)])
"""Volumes at which the harm of each order is tabulated."""

_CORTICAL = (MCA, PCA, ACA)
_LIBRARY_SEED = 20260514
_RUGGED = 0.22


@dataclass(frozen=True)
class Library:
    """Growth orders and what they harm.

    Attributes:
        seed_mm: where each order starts, (K, 3).
        inward: direction in which cortical infarcts reach deeper, unit vectors (K, 3).
        capacity_ml: tissue of the order's territory and side, (K,).
        tract: weighted corticospinal load of the first CURVE_ML ml, (K, 48).
        eloquence: eloquence-weighted ml of the first CURVE_ML ml, (K, 48).
    """

    seed_mm: Floats
    inward: Floats
    capacity_ml: Floats
    tract: Floats
    eloquence: Floats


def territory_of(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index into TERRITORIES of each order."""
    territory: npt.NDArray[np.int64] = order // (2 * ORDERS_PER_SIDE)
    return territory


def is_left(order: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """True where the order lies in the left hemisphere."""
    left: npt.NDArray[np.bool_] = (order // ORDERS_PER_SIDE) % 2 == 0
    return left


def candidates(anatomy: Anatomy, order: int, position_mm: Floats, tissue: Floats) -> npt.NDArray[np.bool_]:
    """Voxels that the order may reach: tissue of its territory on its side.

    Args:
        anatomy: the atlas.
        order: which growth order.
        position_mm: atlas positions of the voxels, (3, N).
        tissue: share of grey and white matter in each, (N,).
    """
    index = anatomy.nearest(position_mm)
    territory = int(territory_of(np.array(order)))
    place = anatomy.lacunar[index] if territory == LACUNE else anatomy.territory[index] == territory + 1
    side = position_mm[0] < -1 if bool(is_left(np.array(order))) else position_mm[0] > 1
    reachable: npt.NDArray[np.bool_] = place & side & (tissue >= TISSUE_SHARE)
    return reachable


def arrival(library: Library, order: int, position_mm: Floats) -> Floats:
    """How late the growing lesion reaches each position, in mm-like units; (N,) for positions (3, N).

    Cortical infarcts are wedges: they reach 1.7 times as far towards the depth as along the cortex. A smooth
    random field roughens the border.
    """
    offset = position_mm - library.seed_mm[order][:, None]
    inward = library.inward[order] @ offset
    stretch = np.float32(1 - 1 / 1.7**2) if territory_of(np.array(order)) in _CORTICAL else np.float32(0)
    distance = np.sqrt(np.maximum((offset**2).sum(axis=0) - stretch * inward**2, 0))
    late: Floats = (distance * (1 + _RUGGED * _rough(order, offset)) + 0.3).astype(np.float32)
    return late


def first_voxels(late: Floats, allowed: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.intp]:
    """Indices of the `count` allowed voxels that are reached first; fewer only if fewer are allowed."""
    index = np.flatnonzero(allowed)
    if count >= len(index):
        return index
    return np.sort(index[np.argpartition(late[index], count)[:count]])


def _rough(order: int, offset_mm: Floats) -> Floats:
    """Sum of a few random plane waves of 12 to 45 mm: smooth, cheap at any position, about unit variance."""
    rng = np.random.default_rng([_LIBRARY_SEED, order])
    waves = rng.normal(size=(8, 3))
    waves *= (2 * np.pi / rng.uniform(12, 45, 8) / np.linalg.norm(waves, axis=1))[:, None]
    phases = rng.uniform(0, 2 * np.pi, 8)
    field: Floats = np.float32(0.5) * np.cos(
        waves.astype(np.float32) @ offset_mm + phases.astype(np.float32)[:, None]
    ).sum(axis=0)
    return field


@lru_cache(maxsize=1)
def seeds() -> Library:
    """The library without its curves: all that rendering needs."""
    anatomy = load_anatomy()
    position, tissue, grey = atlas_voxels()
    chosen = np.zeros((NUM_ORDERS, 3), np.float32)
    capacity = np.zeros(NUM_ORDERS, np.float32)
    for first in range(0, NUM_ORDERS, ORDERS_PER_SIDE):
        allowed = candidates(anatomy, first, position, tissue)
        territory = int(territory_of(np.array(first)))
        weight = allowed * _seed_weight(anatomy, territory, position, grey)
        rng = np.random.default_rng([_LIBRARY_SEED, NUM_ORDERS + first])
        picks = rng.choice(len(weight), ORDERS_PER_SIDE, replace=False, p=weight / weight.sum())
        chosen[first : first + ORDERS_PER_SIDE] = position[:, picks].T
        capacity[first : first + ORDERS_PER_SIDE] = allowed.sum() * GRID.voxel_ml
    depth = np.stack([np.sign(chosen[:, 0]) * 18, np.full(NUM_ORDERS, -20), np.full(NUM_ORDERS, 15)], axis=1)
    inward = depth - chosen
    inward /= np.maximum(np.linalg.norm(inward, axis=1, keepdims=True), 1e-3)
    empty = np.zeros((NUM_ORDERS, len(CURVE_ML)), np.float32)
    return Library(chosen, inward.astype(np.float32), capacity, empty, empty)


def _seed_weight(anatomy: Anatomy, territory: int, position_mm: Floats, grey: Floats) -> Floats:
    """Cortical infarcts start in cortex; lacunes often lie in the tract, posterior ones in the brainstem."""
    if territory in _CORTICAL:
        return (grey > 0.55).astype(np.float32)
    index = anatomy.nearest(position_mm)
    if territory == VERTEBROBASILAR:
        return 1 + 8 * (anatomy.eloquence[index] > 0.5).astype(np.float32)
    return 1 + 4 * (anatomy.tract[index] > 0).astype(np.float32)


@lru_cache(maxsize=1)
def load_library() -> Library:
    """The library with the harm of every order tabulated (about two seconds)."""
    anatomy, bare = load_anatomy(), seeds()
    position, tissue, _ = atlas_voxels()
    index = anatomy.nearest(position)
    harm = np.stack([anatomy.tract[index], anatomy.eloquence[index]]) * np.float32(GRID.voxel_ml)
    curves = np.zeros((2, NUM_ORDERS, len(CURVE_ML)), np.float32)
    for first in range(0, NUM_ORDERS, ORDERS_PER_SIDE):
        inside = np.flatnonzero(candidates(anatomy, first, position, tissue))
        for order in range(first, first + ORDERS_PER_SIDE):
            ranked = inside[np.argsort(arrival(bare, order, position[:, inside]), kind="stable")]
            reached = np.arange(1, len(ranked) + 1) * GRID.voxel_ml
            for row in range(2):
                curves[row, order] = np.interp(CURVE_ML, reached, np.cumsum(harm[row, ranked]), left=0.0)
    return Library(bare.seed_mm, bare.inward, bare.capacity_ml, curves[0], curves[1])


@lru_cache(maxsize=1)
def atlas_voxels() -> tuple[Floats, Floats, Floats]:
    """The unwarped brain on the canonical grid: positions (3, N) in mm, tissue share and grey share (N,)."""
    from scipy import ndimage

    anatomy = load_anatomy()
    position = grid_positions().reshape(3, -1)
    index = anatomy.fine_index(position)
    grey, white, inside = (
        ndimage.map_coordinates(values, index, order=1)
        for values in (anatomy.grey, anatomy.white, anatomy.inside)
    )
    keep = inside > 0.5
    return position[:, keep], (grey + white)[keep], grey[keep]


@lru_cache(maxsize=1)
def grid_positions() -> Floats:
    """MNI millimetres of every voxel centre of the canonical grid, (3, 88, 104, 40)."""
    affine = GRID.affine
    axes = [affine[a, 3] + affine[a, a] * np.arange(GRID.shape[a]) for a in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def harm(
    library: Library, order: npt.NDArray[np.int64], volume_ml: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Tract load and eloquent ml of the first `volume_ml` of each order, both (N,)."""
    place = np.interp(volume_ml, CURVE_ML, np.arange(len(CURVE_ML)))
    low = np.minimum(place.astype(np.int64), len(CURVE_ML) - 2)
    share = place - low
    tract, eloquence = (
        curve[order, low] * (1 - share) + curve[order, low + 1] * share
        for curve in (library.tract, library.eloquence)
    )
    return tract, eloquence
