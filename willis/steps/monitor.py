"""The step `monitor`: one window of the prediction log against the champion's reference."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from willis.errors import ParamsError
from willis.models.bundle import Bundle
from willis.monitoring.alerts import alerts_for
from willis.monitoring.gauges import write_gauges
from willis.monitoring.outcomes import performance
from willis.monitoring.results import GROUPS, ColumnDrift, GroupDrift, MonitorSummary
from willis.outputs import whole_folder
from willis.params import MonitorParams
from willis.settings import Settings
from willis.stores.predictions import PredictionLog
from willis.stores.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

SUMMARY, HTML, GAUGES = "monitor.json", "drift.html", "metrics.prom"


def monitor(
    out: Path,
    params: MonitorParams,
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> MonitorSummary:
    """Compare a window of the prediction log with the reference of the bundle behind the alias.

    Writes monitor.json, drift.html (Evidently's report) and metrics.prom into `out`, the snapshot into the
    Evidently workspace and the gauges as latest.prom into `settings.monitor_dir`.

    Args:
        out: folder to write; appears whole or not at all.
        params: the section `monitor`.
        settings: registry, database and workspace.
        since: start of the window; `params.window_hours` before its end when None.
        until: end of the window, exclusive; now when None.

    Raises:
        ParamsError: the window ends before it starts.
        InputError: the registry holds no such alias.
        StoreError: database or registry do not answer.
    """
    started = time.monotonic()
    until = until or datetime.now(UTC)
    since = since or until - timedelta(hours=params.window_hours)
    if since >= until:
        raise ParamsError(f"the window starts at {since} and ends at {until}; it must start before it ends")
    bundle = Registry.open(settings).fetch(params.alias)
    rows = _rows(settings, since, until)
    window = rows[rows["bundle_version"] == bundle.version] if len(rows) else rows
    blank = _blank(bundle, window, since, until, params, num_others=len(rows) - len(window))
    with whole_folder(out, SUMMARY) as staged:
        summary = (
            blank
            if len(window) < params.min_window
            else _compared(blank, bundle, window, params, settings, staged)
        )
        summary = summary.model_copy(update={"seconds": round(time.monotonic() - started, 2)})
        summary = summary.model_copy(update={"alerts": alerts_for(summary, params.min_auc)})
        (staged / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
        write_gauges(summary, staged / GAUGES)
        write_gauges(summary, settings.monitor_dir / "latest.prom")
    return summary


def _rows(settings: Settings, since: datetime, until: datetime) -> "pd.DataFrame":
    log = PredictionLog(settings.database_url.get_secret_value())
    try:
        return log.window(since, until)
    finally:
        log.close()


def _blank(
    bundle: Bundle,
    window: "pd.DataFrame",
    since: datetime,
    until: datetime,
    params: MonitorParams,
    num_others: int,
) -> MonitorSummary:
    """What can be said of a window of any size."""
    return MonitorSummary(
        version=bundle.version,
        since=since,
        until=until,
        window_size=len(window),
        num_other_versions=num_others,
        reference_size=len(bundle.reference()),
        drift=None,
        reason=f"{len(window)} predictions in the window; monitor.min_window is {params.min_window}",
        limit_share=params.drift_share,
        performance=performance(window, params.min_outcomes, params.seed),
        seconds=0.0,
    )


def _compared(
    blank: MonitorSummary,
    bundle: Bundle,
    window: "pd.DataFrame",
    params: MonitorParams,
    settings: Settings,
    staged: Path,
) -> MonitorSummary:
    # Evidently takes seconds to import, and a window that is too small does not need it.
    from willis.monitoring.drift import DriftTest, compare, save

    test = DriftTest(params.num_resamples, params.quantile, params.min_values, params.seed)
    result = compare(bundle.reference(), window.reset_index(drop=True), test)
    name = f"{bundle.version} {blank.since.isoformat()} {blank.until.isoformat()}"
    snapshot = save(result, staged / HTML, settings.monitor_dir / "workspace", name)
    share, excess, chance = result.share(), result.excess(), result.chance_excess
    return blank.model_copy(
        update={
            "drift": share >= params.drift_share and excess > chance,
            "reason": _reason(share, params.drift_share, excess, chance),
            "share": share,
            "excess": excess,
            "chance_excess": chance,
            "groups": _groups(result.columns),
            "columns": result.columns,
            "report_html": HTML,
            "snapshot": snapshot,
        }
    )


def _reason(share: float, limit: float, excess: float, chance: float) -> str:
    text = f"{share:.1%} of the columns ring"
    if share < limit:
        return f"{text}; drift is called from {limit:.1%} on (monitor.drift_share)"
    if excess <= chance:
        return f"{text}, but no further ({excess:.1f} thresholds) than chance brings ({chance:.1f})"
    return f"{text}, {excess:.1f} thresholds beyond in all; chance brings {chance:.1f}"


def _groups(columns: Iterable[ColumnDrift]) -> tuple[GroupDrift, ...]:
    compared = [column for column in columns if column.rings is not None]
    members = {group: [c for c in compared if c.group == group] for group in GROUPS}
    return tuple(
        GroupDrift(group=group, num_columns=len(found), num_ringing=sum(bool(c.rings) for c in found))
        for group, found in members.items()
        if found
    )
