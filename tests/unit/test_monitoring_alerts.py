"""Alerts, gauges and the rules that read them."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from willis.monitoring.alerts import alerts_for
from willis.monitoring.gauges import write_gauges
from willis.monitoring.results import ColumnDrift, MonitorSummary, Performance

START, END = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)


def a_column(**changes: Any) -> ColumnDrift:
    values: dict[str, Any] = {
        "name": "f_dwi_ratio", "group": "facts", "kind": "number", "method": "wasserstein",
        "statistic": 0.2, "threshold": 0.4, "missing_reference": 0.1, "missing_window": 0.1,
        "missing_threshold": 0.1, "rings": False,
    }  # fmt: skip
    return ColumnDrift(**(values | changes))


def a_summary(**changes: Any) -> MonitorSummary:
    values: dict[str, Any] = {
        "version": "0" * 16, "since": START, "until": END, "window_size": 80, "num_other_versions": 0,
        "reference_size": 70, "drift": False, "reason": "", "share": 0.0, "limit_share": 0.05, "excess": 0.0,
        "chance_excess": 1.0, "columns": (a_column(),), "seconds": 1.0,
        "performance": Performance(num_predictions=80, num_outcomes=0, num_poor=0),
    }  # fmt: skip
    return MonitorSummary(**(values | changes))


def names(summary: MonitorSummary) -> list[str]:
    return [alert.name for alert in alerts_for(summary, min_auc=0.6)]


def test_an_ordinary_window_alerts_nobody() -> None:
    assert names(a_summary()) == []


def test_drift_names_the_column_that_is_furthest_out_first() -> None:
    columns = (
        a_column(name="a", statistic=0.5, rings=True),
        a_column(name="b", statistic=4.0, rings=True),
        a_column(name="c"),
    )
    found = alerts_for(a_summary(drift=True, share=2 / 3, columns=columns), min_auc=0.6)
    assert [alert.name for alert in found] == ["WillisDrift"]
    assert "67% of the columns drifted, most of all b, a:" in found[0].message


def test_a_window_that_is_too_small_says_why() -> None:
    found = alerts_for(a_summary(drift=None, reason="7 predictions"), min_auc=0.6)
    assert [(alert.name, alert.message) for alert in found] == [("WillisWindowTooSmall", "7 predictions")]


@pytest.mark.parametrize(("high", "expected"), [(0.59, ["WillisOutcomesWorse"]), (0.61, []), (None, [])])
def test_outcomes_alert_only_when_the_whole_interval_is_below(
    high: float | None, expected: list[str]
) -> None:
    known = Performance(
        num_predictions=80, num_outcomes=60, num_poor=20,
        auc=None if high is None else 0.5, auc_low=0.4, auc_high=high,
    )  # fmt: skip
    assert names(a_summary(performance=known)) == expected


def exposed(summary: MonitorSummary, path: Path) -> dict[str, float]:
    write_gauges(summary, path)
    families = text_string_to_metric_families(path.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize(("drift", "value"), [(True, 1.0), (False, 0.0)])
def test_drift_is_a_gauge(tmp_path: Path, drift: bool, value: float) -> None:
    assert exposed(a_summary(drift=drift), tmp_path / "m.prom")["willis_drift"] == value


def test_an_unknown_figure_is_nan_and_never_zero(tmp_path: Path) -> None:
    found = exposed(a_summary(drift=None, share=None), tmp_path / "m.prom")
    assert found["willis_drift"] != found["willis_drift"]
    assert found["willis_drift_share"] != found["willis_drift_share"]


def test_every_rule_reads_a_metric_that_exists_and_says_what_to_do(repository: Path, tmp_path: Path) -> None:
    from serving.metrics import Metrics

    rules = YAML(typ="safe").load(repository / "infra" / "prometheus" / "rules.yaml")
    served = {family.name for family in Metrics()._own.collect()}
    known = set(exposed(a_summary(), tmp_path / "m.prom")) | {f"{name}_total" for name in served}
    seen = set()
    for group in rules["groups"]:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "action"}
            assert rule["labels"]["severity"] in {"warning", "critical"}
            metrics = set(re.findall(r"\bwillis_[a-z_]+", rule["expr"]))
            assert metrics and metrics <= known, rule["alert"]
            assert rule["expr"].count("(") == rule["expr"].count(")")
            seen.add(rule["alert"])
    ours = {"WillisDrift", "WillisColumnGone", "WillisWindowTooSmall", "WillisOutcomesWorse"}
    assert ours <= seen


def test_importing_the_step_does_not_import_evidently() -> None:
    import subprocess
    import sys

    code = "import sys, willis.steps.monitor; print('evidently' in sys.modules, 'boto3' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
