"""What a person should look at after a window, and what to do first."""

from willis.monitoring.results import Alert, ColumnDrift, MonitorSummary

SHOWN = 6


def alerts_for(summary: MonitorSummary, min_auc: float) -> tuple[Alert, ...]:
    """Return the alerts of one window; none for an ordinary one.

    Args:
        summary: the window as compared.
        min_auc: the window's AUC is critical when the whole of its interval lies below this.
    """
    return (*_drift(summary), *_gone(summary), *_too_small(summary), *_worse(summary, min_auc))


def _drift(summary: MonitorSummary) -> tuple[Alert, ...]:
    if not summary.drift:
        return ()
    worst = sorted((c for c in summary.columns if c.rings), key=_excess, reverse=True)
    names = ", ".join(column.name for column in worst[:SHOWN])
    message = (
        f"{summary.share:.0%} of the columns drifted, most of all {names}: compare the window's scanners, "
        "sites and sequences with the reference, and hold back automatic use until the cause is known"
    )
    return (Alert(name="WillisDrift", severity="critical", message=message),)


def _gone(summary: MonitorSummary) -> tuple[Alert, ...]:
    gone = [c.name for c in summary.columns if c.missing_window == 1 and c.missing_reference < 1 and c.rings]
    if not gone:
        return ()
    message = f"{', '.join(gone[:SHOWN])} never arrived ({len(gone)} columns); check the source"
    return (Alert(name="WillisColumnGone", severity="warning", message=message),)


def _too_small(summary: MonitorSummary) -> tuple[Alert, ...]:
    if summary.drift is not None:
        return ()
    return (Alert(name="WillisWindowTooSmall", severity="warning", message=summary.reason),)


def _worse(summary: MonitorSummary, min_auc: float) -> tuple[Alert, ...]:
    found = summary.performance
    if found.auc is None or found.auc_high is None or found.auc_high >= min_auc:
        return ()
    message = (
        f"AUC {found.auc:.3f} [{found.auc_low:.3f}, {found.auc_high:.3f}] on {found.num_outcomes} outcomes "
        f"lies below {min_auc}: roll back with `willis promote --to VERSION` or train again"
    )
    return (Alert(name="WillisOutcomesWorse", severity="critical", message=message),)


def _excess(column: ColumnDrift) -> float:
    if column.statistic is None or not column.threshold:
        return 0.0
    return column.statistic / column.threshold
