"""The columns that are watched, and the reference rows that a bundle carries for them.

A row of the reference has the same columns as a row of the prediction log's window: the clinical columns by
name, `f_<fact>`, `r_<report field>`, `grounding_score`, `has_<modality>`, `p`, `embedding_000`...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from willis.cohort.schema import CLINICAL_COLUMNS
from willis.errors import ShapeError
from willis.monitoring.results import Group, Kind

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MAX_LEVELS = 20
"""A text column with more distinct values than this is free text: its drift is the embedding's business."""

FEW_VALUES = 5
"""Whole numbers with at most this many distinct values are compared as categories: counts, not distances."""

SPARSE = 0.4
"""A number of which this share is one value (no lesion in this region) is compared in three steps, as a
category: the distance of a few large values between many zeros says nothing."""

_CLINICAL = {column.name for column in CLINICAL_COLUMNS}
_PRESENCE: dict[str, Group] = {"has_image": "facts", "has_text": "report", "has_table": "table"}
_TIMES = ("f_event_time", "r_event_time", "f_study_id", "r_study_id")


@dataclass(frozen=True)
class WatchedColumn:
    """One column that is compared: `number` by distance, `category` by its shares.

    `steps` of a sparse number are its usual value and the median of the others.
    """

    name: str
    group: Group
    kind: Kind
    steps: tuple[float, float] | None = None


def group_of(name: str) -> Group | None:
    """Return the group that a column of the window belongs to; None for a column that is not watched."""
    if name in _PRESENCE:
        return _PRESENCE[name]
    if name in _TIMES:
        return None
    if name in _CLINICAL:
        return "table"
    if name.startswith("f_"):
        return "facts"
    if name.startswith("r_") or name == "grounding_score":
        return "report"
    return "prediction" if name == "p" else None


def embedding_columns(frame: "pd.DataFrame") -> list[str]:
    """Return the names of the embedding's dimensions, in order."""
    return sorted(name for name in frame.columns if name.startswith("embedding_"))


def watched_columns(reference: "pd.DataFrame") -> tuple[WatchedColumn, ...]:
    """Choose what is compared and how, from the reference alone, so that a window cannot change the test."""
    found = []
    for name in reference.columns:
        group = group_of(str(name))
        kind = None if group is None else _kind(reference[name])
        steps = _steps(as_numbers(reference[name])) if kind == "number" else None
        if group is not None and kind is not None:
            found.append(WatchedColumn(str(name), group, "category" if steps else kind, steps))
    return tuple(found)


def as_numbers(values: "pd.Series") -> "Numbers":
    """Return the column as float64, NaN where it is missing, infinite or no number."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def as_categories(values: "pd.Series") -> "pd.Series":
    """Return the column as text, None where it is missing; 1, 1.0 and True are one category."""
    return values.map(_category).astype(object)


def categories_of(column: WatchedColumn, values: "pd.Series") -> "pd.Series":
    """Return a category column as text, a sparse number in its three steps, None where it is missing."""
    import pandas as pd

    if column.steps is None:
        return as_categories(values)
    usual, middle = column.steps
    numbers = as_numbers(values)
    names = np.full(len(numbers), f"above {middle:.3g}", dtype=object)
    names[numbers <= middle] = f"up to {middle:.3g}"
    names[numbers == usual] = f"{usual:.3g}"
    names[np.isnan(numbers)] = None
    return pd.Series(names, index=values.index, dtype=object)


def sample_reference(
    table: "pd.DataFrame",
    patients: Sequence[str],
    probabilities: "Numbers",
    embeddings: "Numbers",
    num_rows: int,
) -> "pd.DataFrame":
    """Lay out the reference of a bundle.

    Args:
        table: one row per validation patient, with the watched columns among others; others are left out.
        patients: the pseudonym of each row.
        probabilities: shape (n,), calibrated.
        embeddings: shape (n, width), fused.
        num_rows: at most so many rows are kept: those with the smallest pseudonyms, which is a random choice
            that stays the same from run to run.

    Raises:
        ShapeError: the rows do not fit together.
    """
    import pandas as pd

    lengths = (len(table), len(patients), len(probabilities), len(embeddings))
    if len(set(lengths)) != 1:
        raise ShapeError(f"reference rows do not fit: table, patients, p, embeddings have {lengths} rows")
    kept = [name for name in table.columns if group_of(str(name)) is not None and name != "p"]
    names = [f"embedding_{index:03d}" for index in range(embeddings.shape[1])]
    parts = [
        pd.DataFrame({"patient": list(patients)}),
        table[kept].reset_index(drop=True),
        pd.DataFrame({"p": np.asarray(probabilities, dtype=np.float64)}),
        pd.DataFrame(np.asarray(embeddings, dtype=np.float32), columns=names),
    ]
    rows = pd.concat(parts, axis=1).sort_values("patient", kind="stable")
    return rows.head(num_rows).reset_index(drop=True)


def _kind(values: "pd.Series") -> Kind | None:
    present = values.dropna()
    if all(isinstance(value, bool | np.bool_) for value in present):
        return "category"
    numbers = as_numbers(present)
    if np.isfinite(numbers).all():
        # A measured value hardly ever comes back, so as a category every new one would look unseen.
        counted = len(np.unique(numbers)) <= FEW_VALUES and (numbers == np.rint(numbers)).all()
        return "category" if counted else "number"
    return "category" if as_categories(present).nunique() <= MAX_LEVELS else None


def _steps(numbers: "Numbers") -> tuple[float, float] | None:
    values, counts = np.unique(numbers[~np.isnan(numbers)], return_counts=True)
    if counts.max() < SPARSE * counts.sum():
        return None
    others = np.repeat(values, counts)[np.repeat(values, counts) != values[counts.argmax()]]
    usual = float(values[counts.argmax()])
    return usual, float(np.median(others)) if len(others) else usual


def _category(value: object) -> str | None:
    if isinstance(value, bool | np.bool_):
        return "1" if value else "0"
    if isinstance(value, int | float | np.integer | np.floating):
        return f"{float(value):.6g}" if np.isfinite(value) else None
    return None if value is None or value != value else str(value)
