"""A window against the reference, by Evidently: the only module that imports it.

Importing Evidently costs seconds of CPU, so nothing that serves may import this module. Method and threshold
of every column are fixed before Evidently sees the window (willis/monitoring/windows.py); Evidently computes
the statistics, draws the report, and keeps the snapshot in its workspace.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from willis.errors import StepError
from willis.monitoring.reference import (
    WatchedColumn,
    as_numbers,
    categories_of,
    embedding_columns,
    watched_columns,
)
from willis.monitoring.results import ColumnDrift
from willis.monitoring.windows import (
    Limits,
    Resamples,
    chance_excess,
    column_limits,
    embedding_limits,
    excess,
)

if TYPE_CHECKING:
    import pandas as pd

EMBEDDING = "embedding"
METHODS = {"number": "wasserstein", "category": "jensenshannon", "embedding": "distance"}
PROJECT = "willis"


@dataclass(frozen=True)
class DriftResult:
    """Columns as compared, the summed excess that chance alone reaches, and Evidently's own result."""

    columns: tuple[ColumnDrift, ...]
    chance_excess: float
    snapshot: Any

    def share(self) -> float:
        """Return the share of compared columns that ring."""
        compared = [column for column in self.columns if column.rings is not None]
        return sum(bool(column.rings) for column in compared) / len(compared)

    def excess(self) -> float:
        """Return the excess summed over the compared columns."""
        return sum(column.excess for column in self.columns)


@dataclass(frozen=True)
class DriftTest:
    """How strict the comparison is: a section of params.yaml without the rest of it."""

    num_resamples: int
    quantile: float
    min_values: int
    seed: int


def compare(reference: "pd.DataFrame", window: "pd.DataFrame", test: DriftTest) -> DriftResult:
    """Compare a window with the reference, column by column and in the embedding.

    Args:
        reference: rows as `sample_reference` lays them out.
        window: rows as `PredictionLog.window` returns them; a column that it lacks counts as missing.
        test: number of resamples, quantile, and how many values a column needs on both sides.

    Raises:
        StepError: not one column could be compared.
    """
    resamples = Resamples.draw(len(reference), len(window), test.num_resamples, test.seed)
    watched = watched_columns(reference)
    limits = {c.name: column_limits(c, reference, resamples, test.quantile) for c in watched}
    dimensions = embedding_columns(reference)
    if dimensions:
        limits[EMBEDDING] = embedding_limits(reference, resamples, test.quantile)
        watched = (*watched, WatchedColumn(EMBEDDING, "embedding", "embedding"))
    then, now = _cleaned(reference, watched, dimensions), _cleaned(window, watched, dimensions)
    blank = [_before_evidently(c, then, now, dimensions, limits[c.name], test.min_values) for c in watched]
    told = [column for column in blank if not column.reason]
    if not told:
        raise StepError(
            f"none of {len(blank)} columns has {test.min_values} values in the reference and in the window; "
            "the window's predictions carry no features: check the endpoint's log"
        )
    snapshot = _evidently(then, now, told, dimensions)
    values = _values(snapshot)
    columns = tuple(_judged(c, values.get(c.name), compared=not c.reason) for c in blank)
    rung = [limits[c.name] for c in columns if c.rings is not None]
    return DriftResult(columns, chance_excess(rung, test.quantile), snapshot)


def save(result: DriftResult, html: Path, workspace: Path, name: str) -> str:
    """Write Evidently's report as one HTML file and its snapshot into a workspace.

    Returns:
        The snapshot's id in the workspace's project `willis`.
    """
    from evidently.ui.workspace import Workspace

    result.snapshot.save_html(str(html))
    home = Workspace.create(str(workspace))
    known = home.search_project(PROJECT)
    project = known[0] if known else home.create_project(PROJECT, description="Drift of prediction windows")
    result.snapshot.set_name(name)
    return str(home.add_run(project.id, result.snapshot, include_data=False).id)


def _cleaned(
    frame: "pd.DataFrame", watched: Sequence[WatchedColumn], dimensions: list[str]
) -> "pd.DataFrame":
    import pandas as pd

    columns: dict[str, Any] = {}
    for column in watched:
        if column.kind == "embedding":
            continue
        values = frame.get(column.name, pd.Series([None] * len(frame), dtype=object))
        columns[column.name] = (
            as_numbers(values) if column.kind == "number" else categories_of(column, values).to_numpy()
        )
    for name in dimensions:
        columns[name] = as_numbers(frame[name]) if name in frame else np.full(len(frame), np.nan)
    return pd.DataFrame(columns)


def _before_evidently(
    column: WatchedColumn,
    then: "pd.DataFrame",
    now: "pd.DataFrame",
    dimensions: list[str],
    limits: Limits,
    min_values: int,
) -> ColumnDrift:
    """Measure what is missing; an empty column would make Evidently refuse the whole report."""
    names = dimensions if column.kind == "embedding" else [column.name]
    absent_then, absent_now = (frame[names].isna().any(axis=1) for frame in (then, now))
    fewest = min(int((~absent_then).sum()), int((~absent_now).sum()))
    reason = "" if fewest >= min_values else f"{fewest} values on one side; {min_values} are needed"
    if limits.statistic is None:
        reason = reason or "the reference holds no value"
    return ColumnDrift.model_validate(
        {
            "name": column.name,
            "group": column.group,
            "kind": column.kind,
            "method": METHODS[column.kind],
            "threshold": limits.statistic,
            "missing_reference": float(absent_then.mean()),
            "missing_window": float(absent_now.mean()),
            "missing_threshold": limits.missing,
            "rings": None,
            "reason": reason,
        }
    )


def _evidently(
    then: "pd.DataFrame", now: "pd.DataFrame", columns: Sequence[ColumnDrift], dimensions: list[str]
) -> Any:
    # Evidently would otherwise report its use to its makers.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.metrics.embeddings import DistanceDriftMethod, EmbeddingsDrift

    metrics: list[Any] = []
    for column in columns:
        if column.kind == "embedding":
            method = DistanceDriftMethod(dist="euclidean", threshold=column.threshold)
            metrics.append(EmbeddingsDrift(embeddings_name=EMBEDDING, drift_method=method))
        else:
            metrics.append(ValueDrift(column=column.name, method=column.method, threshold=column.threshold))
    has_embedding = any(column.kind == "embedding" for column in columns)
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "number"],
        categorical_columns=[column.name for column in columns if column.kind == "category"],
        embeddings={EMBEDDING: dimensions} if has_embedding else None,
    )
    names = [c.name for c in columns if c.kind != "embedding"] + (dimensions if has_embedding else [])
    current, reference = (
        Dataset.from_pandas(frame[names], data_definition=definition) for frame in (now, then)
    )
    return Report(metrics, include_tests=True).run(current, reference)


def _values(snapshot: Any) -> dict[str, float]:
    return {
        metric["config"].get("column", EMBEDDING): float(metric["value"])
        for metric in snapshot.dict()["metrics"]
    }


def _judged(column: ColumnDrift, statistic: float | None, *, compared: bool) -> ColumnDrift:
    shift = abs(column.missing_window - column.missing_reference)
    beyond = excess(np.array(shift), column.missing_threshold).item()
    if compared and statistic is not None and column.threshold is not None:
        beyond = max(beyond, excess(np.array(statistic), column.threshold).item())
    # Too few values to compare, but their absence itself is news.
    rings = beyond > 0 if compared or beyond > 0 else None
    found = {"statistic": statistic if compared else None, "excess": beyond, "rings": rings}
    return column.model_copy(update=found)
