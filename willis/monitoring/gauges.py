"""The last window as Prometheus gauges, in the text format that node_exporter's textfile collector reads."""

from pathlib import Path
from typing import TYPE_CHECKING

from willis.monitoring.results import MonitorSummary

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Gauge

UNKNOWN = float("nan")


def write_gauges(summary: MonitorSummary, path: Path) -> None:
    """Write one exposition file, whole or not at all.

    `willis_drift` is 1, 0, or NaN when the window was too small to tell; a column's `willis_column_drift` is
    its statistic divided by its threshold, so that 1 is the line for every column.
    """
    from prometheus_client import CollectorRegistry, write_to_textfile

    registry = CollectorRegistry()
    _window(summary, registry)
    _columns(summary, registry)
    _outcomes(summary, registry)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)


def _window(summary: MonitorSummary, registry: "CollectorRegistry") -> None:
    drift = UNKNOWN if summary.drift is None else float(summary.drift)
    for name, meaning, value in (
        ("willis_drift", "1 if the last window drifted, 0 if not, NaN if it was too small", drift),
        ("willis_drift_share", "Share of compared columns that ring", summary.share),
        ("willis_drift_limit_share", "Share from which a window counts as drifted", summary.limit_share),
        ("willis_drift_excess", "Summed excess over the columns' thresholds", summary.excess),
        ("willis_drift_chance_excess", "Summed excess that chance alone reaches", summary.chance_excess),
        ("willis_window_predictions", "Predictions in the last window", summary.window_size),
        ("willis_window_end_timestamp_seconds", "End of the last window", summary.until.timestamp()),
    ):
        _gauge(registry, name, meaning).labels(summary.version).set(UNKNOWN if value is None else value)


def _columns(summary: MonitorSummary, registry: "CollectorRegistry") -> None:
    kind = ("column", "group")
    drift = _gauge(registry, "willis_column_drift", "Statistic over threshold; above 1 rings", *kind)
    missing = _gauge(registry, "willis_column_missing_share", "Share of missing values", *kind)
    before = _gauge(registry, "willis_column_reference_missing_share", "The same, in the reference", *kind)
    for column in summary.columns:
        labels = (summary.version, column.name, column.group)
        missing.labels(*labels).set(column.missing_window)
        before.labels(*labels).set(column.missing_reference)
        if column.statistic is not None and column.threshold:
            drift.labels(*labels).set(column.statistic / column.threshold)


def _outcomes(summary: MonitorSummary, registry: "CollectorRegistry") -> None:
    found = summary.performance
    for name, meaning, value in (
        ("willis_window_outcomes", "Outcomes known for the last window", found.num_outcomes),
        ("willis_window_auc", "AUC against the outcomes known so far", found.auc),
        ("willis_window_auc_low", "Lower end of its 95 % interval", found.auc_low),
        ("willis_window_auc_high", "Upper end of its 95 % interval", found.auc_high),
        ("willis_window_brier", "Brier score against the outcomes known so far", found.brier),
    ):
        _gauge(registry, name, meaning).labels(summary.version).set(UNKNOWN if value is None else value)


def _gauge(registry: "CollectorRegistry", name: str, meaning: str, *labels: str) -> "Gauge":
    from prometheus_client import Gauge

    return Gauge(name, meaning, ["bundle_version", *labels], registry=registry)
