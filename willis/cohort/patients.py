"""Who the synthetic patients are: latent image findings and latent table, and how they hang together.

A patient is one row of two groups of arrays. `Image` holds all that an MRI shows and that matters; `Table`
all that is known without it. Every dependence *between* the two groups is listed in `log_link`, with the same
functions that the sampler uses, so that conditional expectations (the ceilings) follow the sampler exactly.
Coefficients and their sources: docs/cohort.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from willis.cohort.anatomy import LACUNE, MCA, MCA_DEEP, PCA, VERTEBROBASILAR
from willis.cohort.lesions import ORDERS_PER_SIDE, Library, harm, is_left, territory_of

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

TERRITORY_SHARES = (0.42, 0.14, 0.18, 0.12, 0.10, 0.04)
VOLUME_MEDIAN_ML = np.array([13.0, 4.5, 6.5, 3.5, 0.7, 6.0])
VOLUME_LOG_SD = np.array([1.30, 1.00, 1.20, 1.20, 0.45, 1.10])
LACUNE_MAX_ML = 1.75
LARGEST_ML = 250.0
LEFT_SHARE = 0.52


@dataclass(frozen=True)
class Image:
    """What the MRI of each patient shows; arrays (N,), or (N, 2) for the satellites.

    tract and eloquence are 0 to 1; atrophy is in standard deviations of a 65-year-old; haemorrhage is 0 none,
    1 petechial, 2 parenchymal; white_ml is white-matter hyperintensity.
    """

    infarct: Array
    order: Ints
    main_ml: Array
    satellite_order: Ints
    satellite_ml: Array
    volume_ml: Array
    num_lesions: Array
    tract: Array
    eloquence: Array
    white_ml: Array
    atrophy: Array
    old_order: Ints
    old_ml: Array
    haemorrhage: Array
    onset_to_scan_h: Array

    @property
    def territory(self) -> Ints:
        """Index into TERRITORIES; meaningless where there is no infarct."""
        return territory_of(self.order)

    @property
    def left(self) -> npt.NDArray[np.bool_]:
        """True where the main lesion lies on the left."""
        return is_left(self.order)


@dataclass(frozen=True)
class Table:
    """What is known without the MRI; arrays (N,). severity is log(1 + NIHSS) before rounding."""

    age: Array
    female: Array
    bmi: Array
    severity: Array
    prestroke_mrs: Array
    glucose_mmol_l: Array
    systolic_mmhg: Array
    onset_to_admission_h: Array
    onset_to_treatment_h: Array
    atrial_fibrillation: Array
    diabetes: Array
    hypertension: Array
    prior_stroke: Array
    visual_field_defect: Array
    reduced_consciousness: Array
    early_infarct_sign: Array
    dense_artery_sign: Array
    thrombolysis: Array
    thrombectomy: Array

    @property
    def nihss(self) -> Array:
        """NIHSS as examined: whole points from 0 to 42."""
        return np.clip(np.rint(np.expm1(self.severity)), 0, 42)


Group = TypeVar("Group", Image, Table)


def reshape(group: Group, index: tuple[slice | None, ...] | npt.NDArray[np.int64]) -> Group:
    """The same patients with every array indexed alike: a selection, or a new axis for broadcasting."""
    return type(group)(**{f.name: getattr(group, f.name)[index] for f in fields(group)})


def single(group: Group) -> Group:
    """The same patients in single precision: faster where every patient meets every other."""
    arrays = {f.name: getattr(group, f.name) for f in fields(group)}
    return type(group)(**{n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()})


def join(groups: Sequence[Group]) -> Group:
    """Several groups as one."""
    kind = type(groups[0])
    return kind(**{f.name: np.concatenate([getattr(g, f.name) for g in groups]) for f in fields(kind)})


def each(group: Group) -> Iterator[Group]:
    """Patient by patient, as groups of one."""
    for row in range(len(getattr(group, fields(group)[0].name))):
        yield reshape(group, np.array([row]))


def draw(
    rng: np.random.Generator, num: int, library: Library, without_infarct: float = 0.0
) -> tuple[Image, Table]:
    """Draw patients.

    Args:
        rng: source of randomness; the same state gives the same patients.
        num: how many.
        library: growth orders with their harm.
        without_infarct: share of negative studies.

    Returns:
        Image and table of the same `num` patients.
    """
    age = np.clip(rng.normal(71.5, 13, num) - rng.exponential(1.5, num), 22, 101)
    onset = np.clip(rng.lognormal(np.log(4.5), 1.15, num), 0.3, 96)
    image = _draw_image(rng, age, onset, library, without_infarct)
    table = _draw_table(rng, age, onset, image)
    return _bleed(rng, image, table), table


def _flag(rng: np.random.Generator, log_odds: Array) -> Array:
    return (rng.random(np.shape(log_odds)) < sigmoid(log_odds)).astype(float)


def sigmoid(log_odds: Array) -> Array:
    """1 / (1 + exp(-log_odds)) without overflow warnings."""
    out: Array = 0.5 * (1 + np.tanh(0.5 * log_odds))
    return out


def _draw_image(
    rng: np.random.Generator, age: Array, onset: Array, library: Library, without_infarct: float
) -> Image:
    num = len(age)
    infarct = (rng.random(num) >= without_infarct).astype(float)
    territory = rng.choice(len(TERRITORY_SHARES), num, p=TERRITORY_SHARES)
    order = _pick_order(rng, territory, rng.random(num) < LEFT_SHARE)
    main = np.exp(np.log(VOLUME_MEDIAN_ML[territory]) + VOLUME_LOG_SD[territory] * rng.normal(size=num))
    limit = np.where(
        territory == LACUNE, LACUNE_MAX_ML, np.minimum(LARGEST_ML, 0.85 * library.capacity_ml[order])
    )
    main = np.clip(main, 0.15, limit) * infarct
    satellites, satellite_ml = _satellites(rng, order, main)
    tract, eloquent = harm(library, order, main)
    for column in range(2):
        more = harm(library, satellites[:, column], satellite_ml[:, column])
        tract, eloquent = tract + more[0], eloquent + more[1]
    old = _flag(rng, old_infarct_log_odds(age))
    return Image(
        infarct=infarct,
        order=order,
        main_ml=main,
        satellite_order=satellites,
        satellite_ml=satellite_ml,
        volume_ml=main + satellite_ml.sum(axis=1),
        num_lesions=infarct + (satellite_ml > 0).sum(axis=1),
        tract=1 - np.exp(-tract / 1.5),
        eloquence=eloquent / (eloquent + 6),
        white_ml=np.exp(log_white(age) + WHITE_SD * rng.normal(size=num)),
        atrophy=atrophy_mean(age) + ATROPHY_SD * rng.normal(size=num),
        old_order=_pick_order(
            rng, rng.choice((MCA, PCA, MCA_DEEP, VERTEBROBASILAR), num), rng.random(num) < 0.5
        ),
        old_ml=old * np.clip(rng.lognormal(np.log(4), 0.8, num), 0.5, 25),
        haemorrhage=np.zeros(num),
        onset_to_scan_h=onset + rng.lognormal(SCAN_DELAY_LOG_H, SCAN_DELAY_SD, num),
    )


def _pick_order(rng: np.random.Generator, territory: Ints, left: npt.NDArray[np.bool_]) -> Ints:
    within = rng.integers(0, ORDERS_PER_SIDE, len(territory))
    return (territory * 2 + np.where(left, 0, 1)) * ORDERS_PER_SIDE + within


def _satellites(rng: np.random.Generator, order: Ints, main: Array) -> tuple[Ints, Array]:
    """Up to two smaller lesions beside the main one; six of ten in its own territory and side."""
    num = len(order)
    territory = territory_of(order)
    count = rng.choice(3, num, p=(0.78, 0.15, 0.07)) * ((territory != LACUNE) & (main > 0.4))
    near = rng.random((num, 2)) < 0.6
    elsewhere = rng.choice((MCA, PCA, VERTEBROBASILAR), (num, 2))
    left = np.where(near, is_left(order)[:, None], rng.random((num, 2)) < 0.5)
    chosen = np.where(near, territory[:, None], elsewhere)
    orders = np.stack([_pick_order(rng, chosen[:, c], left[:, c]) for c in range(2)], axis=1)
    sizes = np.clip(rng.lognormal(np.log(0.6), 0.8, (num, 2)), 0.15, np.maximum(0.4 * main, 0.15)[:, None])
    return orders, sizes * (np.arange(2) < count[:, None])


def _draw_table(rng: np.random.Generator, age: Array, onset: Array, image: Image) -> Table:
    num = len(age)
    diabetes, hypertension = _flag(rng, np.full(num, -1.153)), _flag(rng, 0.66 + 0.03 * (age - 70))
    severity = severity_mean(image) + SEVERITY_SD * rng.normal(size=num)
    dense = _flag(rng, dense_artery_log_odds(image))
    nihss = np.expm1(severity)
    early = onset < 4.0
    thrombolysis = early * (rng.random(num) < 0.66) * (nihss > 2.5)
    thrombectomy = dense * (onset < 16) * (nihss > 4.5) * (rng.random(num) < 0.85)
    treated = thrombolysis + thrombectomy > 0
    delay = np.where(
        thrombolysis > 0, rng.lognormal(np.log(0.7), 0.4, num), rng.lognormal(np.log(1.6), 0.4, num)
    )
    prior = _flag(rng, prior_stroke_log_odds(image))
    return Table(
        age=age,
        female=_flag(rng, -0.35 + 0.025 * (age - 70)),
        bmi=np.clip(rng.normal(27.0, 4.6, num), 15, 55),
        severity=severity,
        prestroke_mrs=np.clip(np.floor(rng.normal(0.1, 1.25, num) + 0.03 * (age - 70) + 0.8 * prior), 0, 5),
        glucose_mmol_l=np.clip(rng.lognormal(np.log(6.4) + 0.38 * diabetes, 0.20, num), 2.5, 35),
        systolic_mmhg=np.clip(rng.normal(146 + 12 * hypertension, 24, num), 70, 260),
        onset_to_admission_h=onset,
        onset_to_treatment_h=np.where(treated, onset + delay, np.nan),
        atrial_fibrillation=_flag(rng, -1.52 + 0.055 * (age - 70)),
        diabetes=diabetes,
        hypertension=hypertension,
        prior_stroke=prior,
        visual_field_defect=_flag(rng, visual_log_odds(image)),
        reduced_consciousness=_flag(rng, consciousness_log_odds(severity, image)),
        early_infarct_sign=_flag(rng, early_sign_log_odds(onset, image)),
        dense_artery_sign=dense,
        thrombolysis=thrombolysis.astype(float),
        thrombectomy=thrombectomy.astype(float),
    )


def _bleed(rng: np.random.Generator, image: Image, table: Table) -> Image:
    """Haemorrhagic transformation comes last: it depends on the volume and on thrombolysis."""
    petechial, parenchymal = (_flag(rng, x) for x in haemorrhage_log_odds(table.thrombolysis, image))
    grade = np.where(parenchymal > 0, 2.0, petechial) * image.infarct
    return Image(**{f.name: getattr(image, f.name) for f in fields(image)} | {"haemorrhage": grade})


# ---- the dependences between image and table; each is used by the sampler above and by log_link below ----

WHITE_SD, ATROPHY_SD, SEVERITY_SD = 0.85, 0.65, 0.68
SCAN_DELAY_LOG_H, SCAN_DELAY_SD = float(np.log(7.0)), 0.9


def log_white(age: Array) -> Array:
    """Mean of log ml of white-matter hyperintensity at an age."""
    mean: Array = np.log(5.0) + 0.045 * (age - 70)
    return mean


def atrophy_mean(age: Array) -> Array:
    """Mean atrophy at an age, in standard deviations of a 65-year-old."""
    return (age - 65) / 13


def old_infarct_log_odds(age: Array) -> Array:
    """An old infarct is visible."""
    return -1.45 + 0.02 * (age - 70)


def prior_stroke_log_odds(image: Image) -> Array:
    """A prior stroke is known, given what the image keeps of it."""
    return np.where(image.old_ml > 0, 1.0, -2.4)


def severity_mean(image: Image) -> Array:
    """Mean of log(1 + NIHSS): volume, tract, eloquence, and more for a left MCA lesion of equal volume."""
    dominant = image.left & (image.territory == MCA)
    mean: Array = (
        1.12
        + 0.17 * np.log1p(image.volume_ml)
        + 0.35 * image.tract
        + 0.45 * image.eloquence
        + 0.25 * dominant * image.infarct
    )
    return mean


def dense_artery_log_odds(image: Image) -> Array:
    """A dense artery on CT: a large vessel is occluded."""
    large = (image.territory == MCA) * image.infarct
    log_odds: Array = -3.7 + large * (1.2 + 0.80 * np.log1p(image.volume_ml))
    return log_odds


def visual_log_odds(image: Image) -> Array:
    """A visual field defect: posterior cerebral artery, or a large lesion."""
    log_odds: Array = -2.9 + image.infarct * (
        1.9 * (image.territory == PCA) + 0.40 * np.log1p(image.volume_ml)
    )
    return log_odds


def consciousness_log_odds(severity: Array, image: Image) -> Array:
    """Reduced consciousness: severe strokes, brainstem, very large lesions."""
    stem = (image.territory == VERTEBROBASILAR) * image.tract
    log_odds: Array = -5.2 + 1.35 * severity + image.infarct * (1.2 * stem + 0.008 * image.volume_ml)
    return log_odds


def early_sign_log_odds(onset: Array, image: Image) -> Array:
    """Early infarct signs on CT: large and old enough."""
    return -3.0 + 0.55 * np.log1p(image.volume_ml) + 0.35 * np.log1p(onset)


def haemorrhage_log_odds(thrombolysis: Array, image: Image) -> tuple[Array, Array]:
    """Petechial and parenchymal transformation."""
    size = np.log1p(image.volume_ml)
    return -3.9 + 0.60 * size + 0.5 * thrombolysis, -6.2 + 0.75 * size + 0.9 * thrombolysis


def log_link(table: Table, image: Image) -> Array:
    """log p(table, image) up to terms of the table alone and of the image alone; broadcasts.

    With `table` as a column and `image` as a row this is the matrix that turns independent draws of either
    into draws from the joint distribution (ceiling.py).
    """
    total: Array = sum(_link_terms(table, image), start=np.zeros((), np.float32))
    return total


def _link_terms(table: Table, image: Image) -> Iterator[Array]:
    yield -0.5 * ((np.log(image.white_ml) - log_white(table.age)) / WHITE_SD) ** 2
    yield -0.5 * ((image.atrophy - atrophy_mean(table.age)) / ATROPHY_SD) ** 2
    yield _bernoulli(image.old_ml > 0, old_infarct_log_odds(table.age))
    yield _bernoulli(table.prior_stroke, prior_stroke_log_odds(image))
    yield -0.5 * ((table.severity - severity_mean(image)) / SEVERITY_SD) ** 2
    yield _bernoulli(table.dense_artery_sign, dense_artery_log_odds(image))
    yield _bernoulli(table.visual_field_defect, visual_log_odds(image))
    yield _bernoulli(table.reduced_consciousness, consciousness_log_odds(table.severity, image))
    yield _bernoulli(table.early_infarct_sign, early_sign_log_odds(table.onset_to_admission_h, image))
    yield _haemorrhage_term(table, image)
    yield _scan_term(table, image)


def _bernoulli(flag: Array | npt.NDArray[np.bool_], log_odds: Array) -> Array:
    """log P(flag) for P(1) = sigmoid(log_odds); the costly half keeps the shape of log_odds alone."""
    return np.asarray(flag, np.float32) * log_odds - np.log1p(np.exp(log_odds))


def _haemorrhage_term(table: Table, image: Image) -> Array:
    petechial, parenchymal = haemorrhage_log_odds(table.thrombolysis, image)
    none = _bernoulli(np.zeros((), np.float32), parenchymal)
    by_grade = none + _bernoulli(image.haemorrhage == 1, petechial)
    log_p = np.where(image.haemorrhage == 2, _bernoulli(np.ones((), np.float32), parenchymal), by_grade)
    return np.where(image.infarct > 0, log_p, np.float32(0))


def _scan_term(table: Table, image: Image) -> Array:
    """The scan comes after admission by a log-normal delay."""
    delay = image.onset_to_scan_h - table.onset_to_admission_h
    log_delay = np.log(np.maximum(delay, 1e-6))
    log_p = -0.5 * ((log_delay - SCAN_DELAY_LOG_H) / SCAN_DELAY_SD) ** 2 - log_delay
    return np.where(delay > 0, log_p, np.float32(-60))
