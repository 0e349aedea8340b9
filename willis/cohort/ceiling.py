"""The best AUC that each set of modalities can reach, computed in two independent ways.

Quadrature: images and tables are drawn independently and every pair is weighted by how likely it is jointly
(`patients.log_link`), so E[P(poor) | image] and E[P(poor) | table] are weighted means, and the best model
that adds up the modalities, logit = f(image) + g(table), is solved for by Newton steps on free f and g.
Oracle: gradient boosting fitted to fresh joint draws of the same patients, given the true probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from willis.cohort.lesions import Library, load_library
from willis.cohort.outcome import Preset, probability
from willis.cohort.patients import Array, Group, Image, Table, draw, log_link, reshape, sigmoid, single

Singles = npt.NDArray[np.float32]

_SEED = 5140712
SUPPORT = 1200
NUM_SCORED = 16_000
_CHUNK = 1000


class Ceilings(BaseModel):
    """AUC ceilings of a preset: by quadrature, by the boosted oracle, and how far apart they are at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset
    without_infarct: float
    num_draws: int
    prevalence: float
    image: float
    table: float
    full: float
    additive: float
    oracle_image: float
    oracle_table: float
    oracle_full: float
    oracle_additive: float
    agreement: float


@dataclass(frozen=True)
class Support:
    """Independent draws of tables (rows) and images (columns) that stand for their distributions.

    Attributes:
        pairs: joint probability mass of every table with every image, (T, I); rows and columns sum alike.
        chance: P(mRS >= 3) of every pair, (T, I).
        table_log_scale, image_log_scale: what turns log_link into a log joint density, (T,) and (I,).
    """

    table: Table
    image: Image
    preset: Preset
    pairs: Singles
    chance: Singles
    table_log_scale: Singles
    image_log_scale: Singles


def make_support(
    preset: Preset, without_infarct: float = 0.0, size: int = SUPPORT, library: Library | None = None
) -> Support:
    """Draw the support; its images belong to other patients than its tables."""
    rng = np.random.default_rng([_SEED, 1])
    library = library or load_library()
    image, _ = draw(rng, size, library, without_infarct)
    _, table = draw(rng, size, library, without_infarct)
    link, chance = _meet(table, image, preset)
    rows, columns = _balance(link)
    pairs = np.exp(link + rows[:, None] + columns)
    return Support(single(table), single(image), preset, pairs / pairs.sum(), chance, rows, columns)


def _meet(table: Table, image: Image, preset: Preset) -> tuple[Singles, Singles]:
    """log_link and P(mRS >= 3) of every table with every image, both (T, I)."""
    column, row = reshape(single(table), (slice(None), None)), reshape(single(image), (None, slice(None)))
    return log_link(column, row).astype(np.float32), probability(column, row, preset).astype(np.float32)


def _balance(link: Singles) -> tuple[Singles, Singles]:
    """Log scales that give every row and every column the same mass (Sinkhorn)."""
    weight = np.exp(link - link.max())
    columns = np.ones(link.shape[1], np.float32)
    for _ in range(12):
        rows = 1 / np.maximum(weight @ columns, 1e-30)
        columns = 1 / np.maximum(rows @ weight, 1e-30)
    return np.log(rows).astype(np.float32), np.log(columns).astype(np.float32)


def given_image(support: Support, image: Image) -> Array:
    """E[P(mRS >= 3) | image] of each patient, (N,)."""
    return _in_chunks(image, lambda part: _mean(*_against_tables(support, part)))


def given_table(support: Support, table: Table) -> Array:
    """E[P(mRS >= 3) | table] of each patient, (N,)."""
    return _in_chunks(table, lambda part: _mean(*_against_images(support, part)))


def _against_tables(support: Support, image: Image) -> tuple[Singles, Singles]:
    """Conditional weights over the support's tables and the chances, both (N, T)."""
    link, chance = _meet(support.table, image, support.preset)
    return _softmax((link + support.table_log_scale[:, None]).T), chance.T


def _against_images(support: Support, table: Table) -> tuple[Singles, Singles]:
    """Conditional weights over the support's images and the chances, both (N, I)."""
    link, chance = _meet(table, support.image, support.preset)
    return _softmax(link + support.image_log_scale), chance


def _softmax(log_weight: Singles) -> Singles:
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    normal: Singles = weight / weight.sum(axis=1, keepdims=True)
    return normal


def _mean(weight: Singles, chance: Singles) -> Singles:
    mean: Singles = np.einsum("nk,nk->n", weight, chance)
    return mean


def _in_chunks(group: Group, part: Callable[[Group], Singles]) -> Array:
    rows = np.arange(len(next(iter(vars(group).values()))))
    pieces = [part(reshape(group, rows[start : start + _CHUNK])) for start in range(0, len(rows), _CHUNK)]
    return np.concatenate(pieces).astype(float)


def conditional(support: Support, table: Table, image: Image) -> dict[str, Array]:
    """The best scores by image, by table, and by a model that adds up the two, each (N,).

    The additive model is f(image) + g(table) in log-odds with free f and g: their values on the support are
    found by alternating Newton steps on the expected log-likelihood; a new patient's follow likewise.
    """
    f, g = _fit_additive(support)
    by_image = _in_chunks(image, lambda part: _mean_and_offset(*_against_tables(support, part), g))
    by_table = _in_chunks(table, lambda part: _mean_and_offset(*_against_images(support, part), f))
    return {"image": by_image[:, 0], "table": by_table[:, 0], "additive": by_image[:, 1] + by_table[:, 1]}


def _mean_and_offset(weight: Singles, chance: Singles, other: Singles) -> Singles:
    return np.stack([_mean(weight, chance), _solve(weight, chance, other)], axis=1)


def _fit_additive(support: Support, rounds: int = 12) -> tuple[Singles, Singles]:
    """f of the support's images and g of its tables."""
    f, g = (np.zeros(n, np.float32) for n in support.pairs.T.shape)
    for _ in range(rounds):
        f += _newton(support.pairs, support.chance, g[:, None] + f, axis=0)
        g += _newton(support.pairs, support.chance, g[:, None] + f, axis=1)
    return f, g


def _newton(weight: Singles, chance: Singles, log_odds: Singles, axis: int) -> Singles:
    """One Newton step on the offset shared along `axis`, at most 2 long."""
    q = sigmoid(log_odds)
    slope = (weight * (chance - q)).sum(axis=axis)
    curve = (weight * (q * (1 - q))).sum(axis=axis)
    step: Singles = np.clip(slope / np.maximum(curve, 1e-12), -2, 2).astype(np.float32)
    return step


def _solve(weight: Singles, chance: Singles, other: Singles, steps: int = 5) -> Singles:
    """The offset of each row that makes sigmoid(offset + other) right on weighted average, (N,)."""
    offset = np.zeros(len(weight), np.float32)
    for _ in range(steps):
        offset += _newton(weight, chance, offset[:, None] + other, axis=1)
    return offset


def expected_auc(score: Array, chance: Array) -> float:
    """AUC of a score over patients whose outcome is not drawn but weighted by its probability.

    Args:
        score: higher means poorer, (N,).
        chance: P(mRS >= 3), (N,).
    """
    values, place = np.unique(score, return_inverse=True)
    poor = np.bincount(place, weights=chance, minlength=len(values))
    good = np.bincount(place, weights=1 - chance, minlength=len(values))
    below = np.cumsum(good) - 0.5 * good
    return float((poor * below).sum() / (poor.sum() * good.sum()))


def ceilings(preset: Preset, *, without_infarct: float = 0.0, num_draws: int = 120_000) -> Ceilings:
    """Compute the ceilings of a preset both ways.

    Args:
        preset: which coefficients.
        without_infarct: share of negative studies.
        num_draws: joint draws that the boosted oracle learns from.

    Returns:
        The four ceilings by quadrature, by the oracle, and the largest difference.
    """
    from willis.cohort.oracle import oracle_scores

    library = load_library()
    rng = np.random.default_rng([_SEED, 2])
    image, table = draw(rng, NUM_SCORED, library, without_infarct)
    chance = probability(table, image, preset)
    support = make_support(preset, without_infarct, library=library)
    best = conditional(support, table, image) | {"full": chance}
    exact = {name: expected_auc(score, chance) for name, score in best.items()}
    learnt = oracle_scores(draw(rng, num_draws, library, without_infarct), (image, table), preset)
    boosted = {name: expected_auc(score, chance) for name, score in learnt.items()}
    return Ceilings(
        preset=preset,
        without_infarct=without_infarct,
        num_draws=num_draws,
        prevalence=round(float(chance.mean()), 4),
        agreement=round(max(abs(exact[name] - boosted[name]) for name in exact), 4),
        **{name: round(value, 4) for name, value in exact.items()},
        **{f"oracle_{name}": round(value, 4) for name, value in boosted.items()},
    )
