"""ASTRAL, THRIVE and DRAGON: what a clinician can add up at the bedside.

Each score is a sum of items, and each item needs some clinical columns. Where a patient's item is not known,
the mean number of points that training patients had for it stands in; how often that happened is reported.
A score with an item that fewer than half of the training patients have on record is not reported at all.

Sources: ASTRAL: Ntaios et al., Neurology 78:1916 (2012). THRIVE: Flint et al., Int J Stroke 5:119 (2010).
DRAGON: Strbian et al., Neurology 78:427 (2012), derived on patients who had thrombolysis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from willis.evaluation.metrics import Numbers
from willis.models.decision import sigmoid

if TYPE_CHECKING:
    import pandas as pd

MIN_RECORDED = 0.5
Values = dict[str, Numbers]


@dataclass(frozen=True)
class Item:
    """One item of a score: the columns it needs and the points it gives (NaN in, NaN out)."""

    name: str
    columns: tuple[str, ...]
    points: Callable[[Values], Numbers]


@dataclass(frozen=True)
class ScoreResult:
    """One score on some patients, or the reason why there is none."""

    name: str
    points: Numbers | None
    num_filled: int
    reason: str


def steps(values: Numbers, *edges: tuple[float, float]) -> Numbers:
    """Points that grow in steps: the points of the last edge that a value reaches, 0 below the first.

    Args:
        values: (n,) with NaN where unknown.
        edges: (value from which on, points), rising.
    """
    points = np.zeros_like(values)
    for edge, given in edges:
        points = np.where(values >= edge, given, points)
    return np.where(np.isnan(values), np.nan, points)


def above(values: Numbers, edge: float, given: float) -> Numbers:
    """`given` points for values strictly above `edge`."""
    return np.where(np.isnan(values), np.nan, given * (values > edge))


def _flag(column: str, given: float) -> Item:
    return Item(column, (column,), lambda v: given * v[column])


def _glucose_outside(v: Values) -> Numbers:
    glucose = v["glucose_mmol_l"]
    return np.where(np.isnan(glucose), np.nan, ((glucose > 7.3) | (glucose < 3.7)).astype(float))


def _onset_to_treatment(v: Values) -> Numbers:
    """DRAGON counts minutes to thrombolysis; who is known to have had none gets no point for its delay."""
    points = above(v["onset_to_treatment_h"], 1.5, 1)
    return np.where(np.isnan(points) & (v["thrombolysis"] == 0), 0.0, points)


ASTRAL = (
    Item("age", ("age",), lambda v: np.floor(v["age"] / 5)),
    Item("nihss", ("nihss",), lambda v: v["nihss"]),
    Item("delay", ("onset_to_admission_h",), lambda v: above(v["onset_to_admission_h"], 3, 2)),
    _flag("visual_field_defect", 2),
    Item("glucose", ("glucose_mmol_l",), _glucose_outside),
    _flag("reduced_consciousness", 3),
)
THRIVE = (
    Item("nihss", ("nihss",), lambda v: steps(v["nihss"], (11, 2), (21, 4))),
    Item("age", ("age",), lambda v: steps(v["age"], (60, 1), (80, 2))),
    _flag("hypertension", 1),
    _flag("diabetes", 1),
    _flag("atrial_fibrillation", 1),
)
DRAGON = (
    _flag("dense_artery_sign", 1),
    _flag("early_infarct_sign", 1),
    Item("prestroke_mrs", ("prestroke_mrs",), lambda v: above(v["prestroke_mrs"], 1, 1)),
    Item("age", ("age",), lambda v: steps(v["age"], (65, 1), (80, 2))),
    Item("glucose", ("glucose_mmol_l",), lambda v: above(v["glucose_mmol_l"], 8, 1)),
    Item("delay", ("onset_to_treatment_h", "thrombolysis"), _onset_to_treatment),
    Item("nihss", ("nihss",), lambda v: steps(v["nihss"], (5, 1), (10, 2), (16, 3))),
)
SCORES: dict[str, tuple[Item, ...]] = {"ASTRAL": ASTRAL, "THRIVE": THRIVE, "DRAGON": DRAGON}


def astral_probability(points: Numbers) -> Numbers:
    """P(mRS > 2) of an ASTRAL score, by the published curve."""
    return sigmoid(0.1838 * points - 5.587)


def score(name: str, train: "pd.DataFrame", patients: "pd.DataFrame") -> ScoreResult:
    """Add up one score for `patients`, filling unknown items from `train`.

    Args:
        name: a key of SCORES.
        train: clinical columns of the training split.
        patients: clinical columns of those to score.
    """
    items = SCORES[name]
    of_train = [item.points(_values(item, train)) for item in items]
    unrecorded = [
        item.name
        for item, points in zip(items, of_train, strict=True)
        if points.size == 0 or np.isfinite(points).mean() < MIN_RECORDED
    ]
    if unrecorded:
        names = ", ".join(unrecorded).replace("_", " ")
        return ScoreResult(name, None, 0, f"fewer than half of the training patients have: {names}")
    found = np.stack([item.points(_values(item, patients)) for item in items])
    fill = np.array([np.nanmean(points) for points in of_train])[:, None]
    unknown = np.isnan(found)
    total = np.where(unknown, fill, found).sum(axis=0)
    return ScoreResult(name, total, int(unknown.any(axis=0).sum()), "")


def _values(item: Item, frame: "pd.DataFrame") -> Values:
    absent = np.full(len(frame), np.nan)
    return {
        column: frame[column].to_numpy(np.float64, na_value=np.nan) if column in frame else absent
        for column in item.columns
    }
