"""The monitor on a real log and registry, by Evidently: quiet as a rule, loud on a new scanner."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from tests.bundles import a_bundle
from tests.watched_rows import log_rows, patient_rows
from willis.errors import InputError, ParamsError, StepError
from willis.monitoring.drift import DriftTest, compare
from willis.monitoring.reference import as_numbers, categories_of, embedding_columns, watched_columns
from willis.monitoring.results import ColumnDrift, MonitorSummary
from willis.params import MonitorParams
from willis.settings import Settings
from willis.steps.monitor import monitor
from willis.stores.predictions import PredictionLog
from willis.stores.registry import Registry

pytestmark = pytest.mark.integration
DAY = datetime(2026, 5, 1, tzinfo=UTC)
SIZE = 80
NEW_SCANNER, ORDINARY, SMALL, BLIND = (DAY + timedelta(days=k) for k in range(4))
PARAMS = MonitorParams()
TEST = DriftTest(PARAMS.num_resamples, PARAMS.quantile, PARAMS.min_values, PARAMS.seed)


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return patient_rows(70, seed=11)


@pytest.fixture(scope="module")
def place(reference: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with a champion and a log with four windows, a day each."""
    root = tmp_path_factory.mktemp("watched")
    url = f"sqlite:///{root / 'predictions.db'}"
    place = Settings(
        registry=str(root / "registry"),
        bundle_cache=root / "cache",
        database_url=SecretStr(url),
        monitor_dir=root / "monitoring",
    )
    registry, bundle = Registry.open(place), a_bundle(root, reference=reference)
    registry.publish(bundle)
    assert registry.move(registry.alias("champion"), bundle.version)
    blind = patient_rows(SIZE, seed=24).assign(f_flair_ratio=np.nan)
    log = PredictionLog(url)
    for rows, start, version in (
        (patient_rows(SIZE, seed=21, new_scanner=True), NEW_SCANNER, bundle.version),
        (patient_rows(SIZE, seed=22), ORDINARY, bundle.version),
        (patient_rows(PARAMS.min_window - 1, seed=23), SMALL, bundle.version),
        (patient_rows(9, seed=25), SMALL, "0" * 16),
        (blind, BLIND, bundle.version),
    ):
        for row in log_rows(rows, version, start):
            log.append(row)
    log.close()
    return place


def watch(place: Settings, start: datetime, out: Path) -> MonitorSummary:
    return monitor(out, PARAMS, place, since=start, until=start + timedelta(days=1))


@pytest.fixture(scope="module")
def ordinary(place: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[MonitorSummary, Path]:
    out = tmp_path_factory.mktemp("ordinary") / "out"
    return watch(place, ORDINARY, out), out


@pytest.fixture(scope="module")
def shifted(place: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[MonitorSummary, Path]:
    out = tmp_path_factory.mktemp("shifted") / "out"
    return watch(place, NEW_SCANNER, out), out


def test_an_ordinary_window_stays_quiet(ordinary: tuple[MonitorSummary, Path]) -> None:
    found, _ = ordinary
    assert (found.drift, found.window_size, found.alerts) == (False, SIZE, ())


def test_a_new_scanner_rings_and_the_table_does_not(shifted: tuple[MonitorSummary, Path]) -> None:
    found, _ = shifted
    assert found.drift is True
    assert {"f_adc_lesion_mm2_s", "f_dwi_ratio", "f_flair_ratio", "embedding"} <= set(found.ringing())
    rings = {group.group: group.num_ringing / group.num_columns for group in found.groups}
    assert rings["embedding"] == 1
    assert rings["table"] < rings["facts"]
    assert [alert.name for alert in found.alerts] == ["WillisDrift"]
    assert "f_adc_lesion_mm2_s" in found.alerts[0].message


def slow_statistic(column: ColumnDrift, reference: pd.DataFrame, window: pd.DataFrame) -> float:
    if column.kind == "embedding":
        names = embedding_columns(reference)
        return float(np.linalg.norm(reference[names].mean() - window[names].mean()))
    if column.kind == "number":
        then, now = (as_numbers(frame[column.name]) for frame in (reference, window))
        then, now = then[~np.isnan(then)], now[~np.isnan(now)]
        return float(wasserstein_distance(then, now) / max(then.std(), 0.001))
    watched = next(c for c in watched_columns(reference) if c.name == column.name)
    counts = [categories_of(watched, frame[column.name]).value_counts() for frame in (reference, window)]
    levels = sorted(set(counts[0].index) | set(counts[1].index))
    return float(jensenshannon(*(count.reindex(levels).fillna(0) for count in counts)))


def test_evidently_computes_the_statistics_that_the_thresholds_were_drawn_for(
    place: Settings, reference: pd.DataFrame, shifted: tuple[MonitorSummary, Path]
) -> None:
    log = PredictionLog(place.database_url.get_secret_value())
    window = log.window(NEW_SCANNER, NEW_SCANNER + timedelta(days=1))
    compared = [column for column in shifted[0].columns if column.statistic is not None]
    assert len(compared) > 35
    assert {column.kind for column in compared} == {"number", "category", "embedding"}
    for column in compared:
        assert column.statistic == pytest.approx(slow_statistic(column, reference, window), abs=1e-6)


def test_evidently_draws_the_same_line_at_each_threshold(
    reference: pd.DataFrame, shifted: tuple[MonitorSummary, Path]
) -> None:
    result = compare(reference, patient_rows(SIZE, seed=21, new_scanner=True), TEST)
    verdicts = {
        test["metric_config"]["params"]["column"]: test["status"].value == "FAIL"
        for test in result.snapshot.dict()["tests"]
    }
    ours = {
        column.name: column.statistic > column.threshold
        for column in result.columns
        if column.name in verdicts and column.statistic is not None and column.threshold is not None
    }
    assert len(ours) > 35
    assert verdicts == ours


def test_a_column_that_is_always_missing_is_reported_and_stops_nothing(
    ordinary: tuple[MonitorSummary, Path],
) -> None:
    column = next(c for c in ordinary[0].columns if c.name == "f_midline_shift_mm")
    assert (column.rings, column.statistic, column.missing_window) == (None, None, 1.0)
    assert column.reason == "0 values on one side; 10 are needed"


def test_a_column_that_stops_arriving_rings(place: Settings, tmp_path: Path) -> None:
    found = watch(place, BLIND, tmp_path / "out")
    column = next(c for c in found.columns if c.name == "f_flair_ratio")
    assert (column.rings, column.statistic) == (True, None)
    alert = next(alert for alert in found.alerts if alert.name == "WillisColumnGone")
    assert alert.message.startswith("f_flair_ratio never arrived")


def test_a_small_window_says_nothing_and_why(place: Settings, tmp_path: Path) -> None:
    found = watch(place, SMALL, tmp_path / "out")
    assert found.drift is None
    assert (found.window_size, found.num_other_versions) == (PARAMS.min_window - 1, 9)
    assert "monitor.min_window is 30" in found.reason
    assert [alert.name for alert in found.alerts] == ["WillisWindowTooSmall"]
    assert not (tmp_path / "out" / "drift.html").exists()


def test_an_empty_window_is_no_error(place: Settings, tmp_path: Path) -> None:
    found = watch(place, DAY - timedelta(days=9), tmp_path / "out")
    assert (found.drift, found.window_size) == (None, 0)


def test_what_is_written_reads_back(shifted: tuple[MonitorSummary, Path], place: Settings) -> None:
    found, out = shifted
    assert MonitorSummary.model_validate_json((out / "monitor.json").read_text()) == found
    html = (out / "drift.html").read_text()
    assert "f_adc_lesion_mm2_s" in html
    snapshots = place.monitor_dir.rglob("*.json")
    assert any(found.snapshot in path.name for path in snapshots if found.snapshot is not None)


def test_the_gauges_are_what_prometheus_reads(shifted: tuple[MonitorSummary, Path], place: Settings) -> None:
    found, out = shifted
    families = {f.name: f for f in text_string_to_metric_families((out / "metrics.prom").read_text())}
    assert families["willis_drift"].samples[0].value == 1
    assert families["willis_drift"].samples[0].labels == {"bundle_version": found.version}
    ratios = {s.labels["column"]: s.value for s in families["willis_column_drift"].samples}
    for column in found.columns:
        if column.statistic is not None and column.threshold is not None:
            assert ratios[column.name] == pytest.approx(column.statistic / column.threshold)
    assert (place.monitor_dir / "latest.prom").is_file()


def test_a_patients_pseudonym_stands_in_no_report(shifted: tuple[MonitorSummary, Path]) -> None:
    assert not [path.name for path in shifted[1].iterdir() if b"0021-000" in path.read_bytes()]


def test_a_window_without_a_single_feature_says_where_to_look(reference: pd.DataFrame) -> None:
    with pytest.raises(StepError, match="check the endpoint's log"):
        compare(reference, pd.DataFrame({"prediction_id": [str(k) for k in range(40)]}), TEST)


def test_a_window_that_ends_before_it_starts_is_refused(place: Settings, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="must start before it ends"):
        monitor(tmp_path / "out", PARAMS, place, since=DAY, until=DAY)


def test_a_registry_without_champion_is_named(place: Settings, tmp_path: Path) -> None:
    empty = place.model_copy(update={"registry": str(tmp_path / "empty")})
    with pytest.raises(InputError, match="run `willis promote`"):
        monitor(tmp_path / "out", PARAMS, empty, since=DAY, until=ORDINARY)


def test_the_command_exits_with_three_on_drift(place: Settings, tmp_path: Path) -> None:
    variables = {
        "WILLIS_REGISTRY": place.registry,
        "WILLIS_BUNDLE_CACHE": str(place.bundle_cache),
        "WILLIS_DATABASE_URL": place.database_url.get_secret_value(),
        "WILLIS_MONITOR_DIR": str(tmp_path),
    }
    params = tmp_path / "params.yaml"
    params.write_text("monitor: {}\n")
    willis = Path(sys.executable).with_name("willis")
    bounds = ["--since", NEW_SCANNER.isoformat(), "--until", ORDINARY.isoformat()]
    command = [willis, "monitor", "--json", "--params", params, "--out", tmp_path / "out", *bounds]
    found = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert found.returncode == 3, found.stderr[-2000:]
    assert json.loads(found.stdout)["drift"] is True
