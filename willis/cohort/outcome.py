"""The outcome: an ordinal mRS at 90 days whose log-odds are known exactly.

One number, eta, holds everything: P(mRS >= 3) = sigmoid(eta); the other grades follow by proportional odds.
Each coefficient stands here once, under a name, with its source in docs/cohort.md.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from willis.cohort.anatomy import VERTEBROBASILAR
from willis.cohort.patients import Array, Image, Table, sigmoid

Preset = Literal["published", "interacting"]

GRADE_OFFSETS = np.array([1.82, 0.685, 0.0, -0.645, -1.61, -2.285])
"""logit P(mRS >= k) minus logit P(mRS >= 3) for k = 1..6: mean of the untreated large-vessel and other
strokes in the mRS distributions of PyPI `stroke-outcome`."""


@dataclass(frozen=True)
class Effects:
    """Every coefficient of eta, in log-odds of mRS >= 3."""

    intercept: float
    age_per_year: float
    nihss_per_point: float
    late_admission: float
    visual_field_defect: float
    glucose_out_of_range: float
    reduced_consciousness: float
    prestroke_per_grade: float
    diabetes: float
    volume_per_log_ml: float
    tract: float
    eloquence: float
    brainstem: float
    white_per_sd: float
    atrophy_per_sd: float
    haemorrhage_per_grade: float
    old_infarct: float
    thrombolysis: float
    thrombectomy: float
    thrombolysis_core_ml: float
    thrombectomy_core_ml: float
    futile: float
    age_by_frailty: float


_ASTRAL = 0.1838

PUBLISHED = Effects(
    intercept=-6.10,
    age_per_year=0.8 * _ASTRAL / 5,
    nihss_per_point=0.8 * _ASTRAL,
    late_admission=0.8 * 2 * _ASTRAL,
    visual_field_defect=0.8 * 2 * _ASTRAL,
    glucose_out_of_range=0.8 * _ASTRAL,
    reduced_consciousness=0.8 * 3 * _ASTRAL,
    prestroke_per_grade=0.45,
    diabetes=0.25,
    volume_per_log_ml=0.45,
    tract=1.10,
    eloquence=0.90,
    brainstem=0.40,
    white_per_sd=0.30,
    atrophy_per_sd=0.20,
    haemorrhage_per_grade=0.45,
    old_infarct=0.20,
    thrombolysis=-0.80,
    thrombectomy=-1.30,
    thrombolysis_core_ml=70,
    thrombectomy_core_ml=70,
    futile=0.0,
    age_by_frailty=0.15,
)

INTERACTING = replace(
    PUBLISHED,
    intercept=-5.35,
    nihss_per_point=0.5 * _ASTRAL,
    volume_per_log_ml=0.28,
    tract=0.70,
    eloquence=0.50,
    white_per_sd=0.10,
    atrophy_per_sd=0.10,
    thrombolysis=-4.0,
    thrombectomy=-4.0,
    thrombolysis_core_ml=18,
    thrombectomy_core_ml=30,
    futile=1.5,
    age_by_frailty=2.2,
)

_WHITE_70, _ATROPHY_70 = float(np.log(5.0)), 5 / 13
_THROMBOLYSIS_USELESS_H, _THROMBECTOMY_USELESS_H = 6.3, 24.0


def effects(preset: Preset) -> Effects:
    """The coefficients of a preset."""
    return INTERACTING if preset == "interacting" else PUBLISHED


def eta(table: Table, image: Image, preset: Preset) -> Array:
    """Log-odds of mRS >= 3; broadcasts a table column against an image row."""
    e = effects(preset)
    total: Array = _table_part(e, table) + _image_part(e, image) + _joint_part(e, table, image)
    return total


def probability(table: Table, image: Image, preset: Preset) -> Array:
    """P(mRS >= 3), the truth that no model can know better."""
    return sigmoid(eta(table, image, preset))


def _table_part(e: Effects, table: Table) -> Array:
    """What the table alone adds: ASTRAL's items, pre-stroke mRS, diabetes."""
    glucose = (table.glucose_mmol_l > 7.3) | (table.glucose_mmol_l < 3.7)
    total: Array = (
        e.intercept
        + e.age_per_year * table.age
        + e.nihss_per_point * table.nihss
        + e.late_admission * (table.onset_to_admission_h > 3)
        + e.visual_field_defect * table.visual_field_defect
        + e.glucose_out_of_range * glucose
        + e.reduced_consciousness * table.reduced_consciousness
        + e.prestroke_per_grade * table.prestroke_mrs
        + e.diabetes * table.diabetes
    )
    return total


def _white_z(image: Image) -> Array:
    """White-matter burden in standard deviations of all patients (of any age)."""
    z: Array = (np.log(image.white_ml) - _WHITE_70) / 1.03
    return z


def frailty(image: Image) -> Array:
    """How frail the brain looks: white-matter burden and atrophy, about zero mean and unit variance."""
    atrophy = (image.atrophy - _ATROPHY_70) / 1.2
    z: Array = (_white_z(image) + atrophy) / 1.7
    return z


def _image_part(e: Effects, image: Image) -> Array:
    """What the image alone adds: volume, tract, eloquence, brainstem, small vessels, blood."""
    total: Array = (
        e.volume_per_log_ml * np.log1p(image.volume_ml)
        + e.tract * image.tract
        + e.eloquence * image.eloquence
        + e.brainstem * (image.territory == VERTEBROBASILAR) * (image.tract > 0.1) * image.infarct
        + e.white_per_sd * _white_z(image)
        + e.atrophy_per_sd * (image.atrophy - _ATROPHY_70)
        + e.haemorrhage_per_grade * image.haemorrhage
        + e.old_infarct * (image.old_ml > 0)
    )
    return total


def salvage(volume_ml: Array, half_ml: float, futile: float) -> Array:
    """Share of a treatment's full benefit left at a core volume: 1 at none, 1/2 (futile = 0) at `half_ml`.

    With futile > 0 the share falls below zero for large cores: treating them does harm.
    """
    left: Array = (1 + futile) / (1 + (volume_ml / half_ml) ** 2) - futile
    return left


def _joint_part(e: Effects, table: Table, image: Image) -> Array:
    """What only both together tell: treatment by core and time, age by a brain frailer than its years."""
    years = table.age - 70
    hours = np.nan_to_num(table.onset_to_treatment_h, nan=0.0)
    lysis = table.thrombolysis * np.clip(1 - hours / _THROMBOLYSIS_USELESS_H, 0, 1)
    pull = table.thrombectomy * np.clip(1 - hours / _THROMBECTOMY_USELESS_H, 0, 1)
    total: Array = (
        e.thrombolysis * lysis * salvage(image.volume_ml, e.thrombolysis_core_ml, e.futile)
        + e.thrombectomy * pull * salvage(image.volume_ml, e.thrombectomy_core_ml, e.futile)
        + e.age_by_frailty * (years / 13) * (frailty(image) - 0.79 * years / 13)
    )
    return total


def draw_mrs(rng: np.random.Generator, log_odds: Array) -> npt.NDArray[np.int64]:
    """Draw mRS 0-6 by proportional odds around P(mRS >= 3) = sigmoid(log_odds)."""
    chance = rng.random(np.shape(log_odds))
    reached = sigmoid(np.asarray(log_odds)[..., None] + GRADE_OFFSETS)
    grade: npt.NDArray[np.int64] = (chance[..., None] < reached).sum(axis=-1)
    return grade
