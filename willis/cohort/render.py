"""One patient's MRI: the atlas, warped, aged, injured, and seen by a scanner."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from willis.cohort.anatomy import Anatomy, load_anatomy
from willis.cohort.lesions import GRID, Library, arrival, candidates, first_voxels, grid_positions, seeds
from willis.cohort.patients import Image
from willis.cohort.physics import (
    BLOOD_T2_MS,
    FLUID,
    GREY,
    HYPERINTENSE,
    WHITE,
    Floats,
    Scanner,
    Signals,
    adc_from,
    lesion_t2_factor,
    rician,
    tissue_signal,
)

Bools = npt.NDArray[np.bool_]
Shorts = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Study:
    """A rendered MRI on the canonical grid; background is exactly 0.

    Attributes:
        dwi, flair: arbitrary units.
        adc: 1e-6 mm^2/s.
        lesion: the acute infarct, 0 or 1.
        old: old infarcts, 0 or 1.
        hyperintensity: white-matter hyperintensity, 0 or 1.
    """

    dwi: Shorts
    adc: Shorts
    flair: Shorts
    lesion: npt.NDArray[np.uint8]
    old: npt.NDArray[np.uint8]
    hyperintensity: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Brain:
    """The voxels of one patient's brain, N of them.

    Attributes:
        inside: which voxels of the grid, (X, Y, Z).
        atlas_mm: where each lies in the atlas, (3, N).
        grey, white, fluid: shares of each voxel, adding up to 1.
    """

    inside: Bools
    atlas_mm: Floats
    grey: Floats
    white: Floats
    fluid: Floats


def render(rng: np.random.Generator, image: Image, scanner: Scanner) -> Study:
    """Make the MRI of one patient.

    Args:
        rng: source of the patient's shape, texture and noise.
        image: what the MRI must show; arrays of length 1.
        scanner: what sees it.
    """
    anatomy, library = load_anatomy(), seeds()
    brain = _brain(rng, anatomy, float(image.atrophy[0]))
    acute = _infarct(anatomy, library, brain, image)
    old = _old_infarct(anatomy, library, brain, image, acute)
    white = _hyperintensity(rng, anatomy, brain, float(image.white_ml[0]), acute | old)
    signals = _normal_signals(brain, scanner, _soft(brain, old), _soft(brain, white))
    signals = _infarct_signals(rng, brain, scanner, image, acute, signals)
    dwi, adc, flair = _acquire(rng, brain, scanner, signals)
    return Study(dwi, adc, flair, *(_on_grid(brain, m.astype(np.uint8)) for m in (acute, old, white)))


def _on_grid(brain: Brain, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.zeros(brain.inside.shape, values.dtype)
    out[brain.inside] = values
    return out


# ---- shape ----


@lru_cache(maxsize=8)
def _spline(num_voxels: int, num_knots: int) -> Floats:
    """Cubic B-spline weights of `num_knots` equally spaced knots at each voxel, (voxels, knots)."""
    place = np.linspace(1, num_knots - 2, num_voxels)[:, None] - np.arange(num_knots)
    t = np.abs(place)
    near = 2 / 3 - t**2 + t**3 / 2
    far = np.maximum(2 - t, 0) ** 3 / 6
    weights: Floats = np.where(t < 1, near, far).astype(np.float32)
    return weights


def smooth_field(rng: np.random.Generator, knots: tuple[int, int, int]) -> Floats:
    """A smooth random field on the grid, zero mean and unit sd in expectation at the knots' scale."""
    x, y, z = (_spline(n, k) for n, k in zip(GRID.shape, knots, strict=True))
    values = rng.standard_normal(knots, np.float32)
    field: Floats = np.einsum("xi,yj,zk,ijk->xyz", x, y, z, values, optimize="optimal")
    return field * np.float32(1.9)


def _brain(rng: np.random.Generator, anatomy: Anatomy, atrophy: float) -> Brain:
    """Warp the atlas, widen ventricles and sulci with atrophy."""
    from scipy import ndimage

    where = _warp(rng)
    flat = where.reshape(3, -1)
    head = ndimage.map_coordinates(anatomy.inside, anatomy.fine_index(flat), order=1).reshape(GRID.shape)
    inside = head > 0.5
    position = where[:, inside]
    position = position - _ventricle_push(anatomy, position, atrophy)
    index = anatomy.fine_index(position)
    grey, white = (ndimage.map_coordinates(m, index, order=1) for m in (anatomy.grey, anatomy.white))
    tissue = np.clip(grey + white, 1e-4, 1)
    shrunk = tissue ** np.float32(np.clip(1.15 + 0.45 * atrophy, 0.7, 3.0))
    share = shrunk / np.maximum(grey + white, 1e-4)
    return Brain(inside, position, grey * share, white * share, 1 - shrunk)


def _warp(rng: np.random.Generator) -> Floats:
    """Where each voxel of the patient lies in the atlas, (3, X, Y, Z): small affine, small smooth warp.

    The studies count as registered, so what is left is what registration leaves.
    """
    position = grid_positions()
    centre = np.array([0.0, -18.0, 8.0], np.float32)[:, None, None, None]
    matrix = np.eye(3) + np.diag(rng.normal(0, 0.02, 3)) + rng.normal(0, 0.012, (3, 3))
    moved = np.tensordot(matrix.astype(np.float32), position - centre, axes=1) + centre
    shift = rng.normal(0, 1.0, 3).astype(np.float32)
    warp = np.stack([np.float32(1.8) * smooth_field(rng, (7, 8, 7)) for _ in range(3)])
    out: Floats = moved + shift[:, None, None, None] + warp
    return out


def _ventricle_push(anatomy: Anatomy, position: Floats, atrophy: float) -> Floats:
    """Displacement that widens the ventricles, fading over 14 mm, (3, N) in mm."""
    index = anatomy.nearest(position)
    fade = np.exp(-anatomy.ventricle_mm[index] / np.float32(14))
    amount = np.float32(np.clip(1.2 + 1.4 * atrophy, -1.0, 5.5))
    push: Floats = amount * fade * np.stack([axis[index] for axis in anatomy.away])
    return push


# ---- injury ----


def _infarct(anatomy: Anatomy, library: Library, brain: Brain, image: Image) -> Bools:
    """The acute infarct: the main lesion and its satellites, each with its exact number of voxels."""
    orders = [int(image.order[0]), *map(int, image.satellite_order[0])]
    sizes = [float(image.main_ml[0]), *map(float, image.satellite_ml[0])]
    mask = np.zeros(brain.grey.shape, bool)
    for order, volume_ml in zip(orders, sizes, strict=True):
        if volume_ml > 0:
            mask |= _grow(anatomy, library, brain, order, volume_ml, mask)
    return mask


def _grow(
    anatomy: Anatomy, library: Library, brain: Brain, order: int, volume_ml: float, taken: Bools
) -> Bools:
    count = max(1, round(volume_ml / GRID.voxel_ml))
    allowed = candidates(anatomy, order, brain.atlas_mm, brain.grey + brain.white) & ~taken
    near = np.flatnonzero(allowed)
    mask = np.zeros(len(taken), bool)
    late = arrival(library, order, brain.atlas_mm[:, near])
    mask[near[first_voxels(late, np.ones(len(near), bool), count)]] = True
    return mask


def _old_infarct(anatomy: Anatomy, library: Library, brain: Brain, image: Image, acute: Bools) -> Bools:
    volume_ml = float(image.old_ml[0])
    if volume_ml <= 0:
        return np.zeros_like(acute)
    return _grow(anatomy, library, brain, int(image.old_order[0]), volume_ml, acute)


def _hyperintensity(
    rng: np.random.Generator, anatomy: Anatomy, brain: Brain, volume_ml: float, taken: Bools
) -> Bools:
    """White-matter hyperintensity: caps and bands along the ventricles first, then patches in deep white."""
    rough = smooth_field(rng, (30, 35, 22))[brain.inside] + 0.5 * smooth_field(rng, (9, 10, 9))[brain.inside]
    distance = anatomy.ventricle_mm[anatomy.nearest(brain.atlas_mm)]
    allowed = (brain.white > 0.7) & (distance < 45) & (brain.atlas_mm[2] > -12) & ~taken
    late = (distance / np.float32(9) - rough).astype(np.float32)
    mask = np.zeros(len(taken), bool)
    mask[first_voxels(late, allowed, round(volume_ml / GRID.voxel_ml))] = True
    return mask


def _soft(brain: Brain, mask: Bools) -> Floats:
    """The mask with the edge of a real border: about half a voxel wide, (N,)."""
    from scipy import ndimage

    if not mask.any():
        return mask.astype(np.float32)
    volume = _on_grid(brain, mask.astype(np.float32))
    soft: Floats = ndimage.gaussian_filter(volume, (0.55, 0.55, 0.35), truncate=2.5)[brain.inside]
    return soft


# ---- signal ----


def _normal_signals(brain: Brain, scanner: Scanner, old: Floats, hyper: Floats) -> Signals:
    """Signals of the brain before the acute infarct; an old one is a cavity with a bright rim."""
    cavity = np.clip(1.6 * old - 0.6, 0, 1)
    rim = np.clip(old - cavity, 0, 1)
    sound = 1 - cavity - rim
    grey = brain.grey * sound
    bright = brain.white * hyper * sound + rim
    white = brain.white * (1 - hyper) * sound
    fluid = brain.fluid * sound + cavity
    shares = ((GREY, grey), (WHITE, white), (FLUID, fluid), (HYPERINTENSE, bright))
    total = tissue_signal(GREY, scanner).scaled(np.zeros_like(grey))
    for tissue, share in shares:
        total = total + tissue_signal(tissue, scanner).scaled(share)
    return total


def _infarct_signals(
    rng: np.random.Generator, brain: Brain, scanner: Scanner, image: Image, acute: Bools, sound: Signals
) -> Signals:
    """Blend the infarct in: slower diffusion, longer T2 with the hours, squeezed sulci, blood."""
    soft = _soft(brain, acute)
    hit = np.flatnonzero(soft > 0.01)
    level, texture = rng.normal(0.58, 0.03), smooth_field(rng, (16, 18, 12))
    if len(hit) == 0:
        return sound
    rough = texture[brain.inside][hit]
    adc = np.clip(level * (1 + 0.07 * rough), 0.40, 0.72).astype(np.float32)
    t2 = (lesion_t2_factor(float(image.onset_to_scan_h[0])) * (1 + 0.03 * rough)).astype(np.float32)
    fluid = brain.fluid[hit] * 0.2
    white = brain.white[hit] / np.maximum(brain.grey[hit] + brain.white[hit], 1e-3) * (1 - fluid)
    injured = (
        tissue_signal(GREY, scanner, t2, adc).scaled(1 - fluid - white)
        + tissue_signal(WHITE, scanner, t2, adc).scaled(white)
        + tissue_signal(FLUID, scanner).scaled(fluid)
    )
    blood = _blood(rng, brain, hit, rough, int(image.haemorrhage[0]))
    dark = tissue_signal(GREY, scanner, BLOOD_T2_MS / GREY.t2_ms, 0.6)
    injured = injured.scaled(1 - blood) + dark.scaled(blood)
    return _blend(sound, injured, hit, soft[hit])


def _blood(
    rng: np.random.Generator, brain: Brain, hit: npt.NDArray[np.intp], rough: Floats, grade: int
) -> Floats:
    """Share of blood: scattered spots (grade 1), or a clot that fills up to a third (grade 2)."""
    spots = smooth_field(rng, (38, 45, 20))
    if grade == 0:
        return np.zeros(len(hit), np.float32)
    if grade == 1:
        return (0.8 * (spots[brain.inside][hit] > 1.6)).astype(np.float32)
    return (0.9 * (rough > np.quantile(rough, 0.72))).astype(np.float32)


def _blend(sound: Signals, injured: Signals, hit: npt.NDArray[np.intp], weight: Floats) -> Signals:
    def mix(a: Floats, b: Floats) -> Floats:
        out = a.copy()
        out[hit] = a[hit] * (1 - weight) + b * weight
        return out

    return Signals(
        mix(sound.b0, injured.b0), mix(sound.b1000, injured.b1000), mix(sound.flair, injured.flair)
    )


def _acquire(
    rng: np.random.Generator, brain: Brain, scanner: Scanner, signals: Signals
) -> tuple[Shorts, Shorts, Shorts]:
    """What leaves the scanner: inhomogeneous, blurred across slices, noisy, in whole numbers."""
    texture = 1 + np.float32(0.02) * smooth_field(rng, (22, 26, 16))[brain.inside]
    coil = [np.exp(np.float32(scanner.bias) * smooth_field(rng, (5, 5, 5)))[brain.inside] for _ in range(2)]
    b0, b1000, flair = (
        _slice_blur(brain, values * shape, scanner)
        for values, shape in (
            (signals.b0, coil[0]),
            (signals.b1000 * texture, coil[0]),
            (signals.flair * texture, coil[1]),
        )
    )
    noise = float(np.median(b1000)) / scanner.snr_dwi
    seen0, seen1000 = rician(rng, b0, 0.7 * noise), rician(rng, b1000, noise)
    seen_flair = rician(rng, flair, float(np.median(flair)) / scanner.snr_flair)
    gains = np.exp(rng.normal(0, 0.08, 2)) * (scanner.gain_dwi, scanner.gain_flair)
    numbers = (gains[0] * seen1000, adc_from(seen0, seen1000), gains[1] * seen_flair)
    dwi, adc, flair_out = (_on_grid(brain, np.clip(np.rint(v), 1, 32000).astype(np.int16)) for v in numbers)
    return dwi, adc, flair_out


def _slice_blur(brain: Brain, values: Floats, scanner: Scanner) -> Floats:
    from scipy import ndimage

    volume = _on_grid(brain, values)
    weight = _on_grid(brain, np.ones_like(values))
    blurred = ndimage.gaussian_filter1d(volume, scanner.slice_blur, axis=2, truncate=3)[brain.inside]
    norm = ndimage.gaussian_filter1d(weight, scanner.slice_blur, axis=2, truncate=3)[brain.inside]
    out: Floats = blurred / norm
    return out
