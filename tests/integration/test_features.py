"""The feature store with real backends: DuckDB offline, SQLite and a real Redis server online."""

import subprocess
import sys
import sysconfig
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.small_ingest import START, write_small_ingest
from willis.cohort.schema import CLINICAL_COLUMNS
from willis.errors import ParamsError, SettingsError, StaleFeaturesError, StepError, StoreError
from willis.imaging.lesion import Facts
from willis.params import FeaturizeParams, ReportParams
from willis.reports.schema import Findings, report_columns
from willis.settings import Settings
from willis.steps.featurize import FACTS, featurize
from willis.steps.report import report
from willis.stores import features as store

pytestmark = pytest.mark.integration

TTL = timedelta(days=30)
CLINICAL = [column.name for column in CLINICAL_COLUMNS]


@pytest.fixture
def settings(tmp_path: Path, repository: Path) -> Settings:
    return _settings(tmp_path, repository, "sqlite")


@pytest.fixture(params=["sqlite", "redis"])
def either(request: pytest.FixtureRequest, tmp_path: Path, repository: Path) -> Settings:
    """The same store with SQLite and with Redis online."""
    url = "sqlite" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    return _settings(tmp_path, repository, url)


def _settings(tmp_path: Path, repository: Path, online: str) -> Settings:
    return Settings(
        feast_dir=tmp_path / "feast", feast_online=online, feature_repo=repository / "feature_repo",
        report_store=tmp_path / "reports.sqlite",
    )  # fmt: skip


def _columns(view: str, settings: Settings) -> dict[str, str]:
    fields = getattr(store._definitions(settings, TTL), view).features
    return {field.name: str(field.dtype) for field in fields}


def _rows(
    view: str, patients: list[str], times: list[Any], settings: Settings, start: int = 0
) -> pd.DataFrame:
    """Rows whose every value tells them apart; in range for the clinical schema."""
    rows = pd.DataFrame(
        {"patient_id": patients, "event_timestamp": pd.to_datetime(pd.Series(times), utc=True)}
    )
    for name, kind in _columns(view, settings).items():
        known = next((c for c in CLINICAL_COLUMNS if c.name == name), None)
        number = np.arange(start, start + len(rows), dtype=float)
        if name == "sex":
            rows[name] = "F"
        elif kind == "String":
            rows[name] = [f"{view}-{int(n)}" for n in number]
        elif known is not None:
            rows[name] = known.low + (number % 10) * (known.high - known.low) / 10
        else:
            rows[name] = number
    return rows


def _tables(patients: list[str], time: Any, settings: Settings) -> dict[str, pd.DataFrame]:
    return {view: _rows(view, patients, [time] * len(patients), settings) for view in store.VIEWS}


def _slow_join(asked: pd.DataFrame, rows: pd.DataFrame, view: str) -> pd.DataFrame:
    """The obvious reference: for each row the newest one of the same patient, not after it, not expired."""
    ordered = rows.rename(columns=lambda n: n if n in ("patient_id", "event_timestamp") else f"{view}__{n}")
    ordered["event_timestamp"] = ordered["event_timestamp"].dt.round("us").dt.as_unit("us")
    numbered = asked.assign(number=range(len(asked))).sort_values("event_timestamp", kind="stable")
    joined = pd.merge_asof(
        numbered, ordered.sort_values("event_timestamp"), on="event_timestamp", by="patient_id", tolerance=TTL
    )
    return joined.sort_values("number").drop(columns=["number", "patient_id", "event_timestamp"])


def test_a_thousand_rows_join_as_pandas_joins_them_and_nothing_leaks_from_the_future(
    settings: Settings,
) -> None:
    random = np.random.default_rng(5)
    patients = [f"sub-{number:03d}" for number in range(120)]
    tables = {}
    for k, view in enumerate(store.VIEWS):
        seconds = random.choice(90 * 86_400, 700, replace=False) + k / 1e6
        who = random.choice(patients, 700).tolist()
        tables[view] = _rows(
            view, who, [START + pd.Timedelta(microseconds=round(s * 1e6)) for s in seconds], settings
        )
    store.write_rows(tables, TTL, settings)
    asked = pd.DataFrame({
        "patient_id": random.choice([*patients, "unknown"], 940),
        "event_timestamp": START + pd.to_timedelta(random.integers(0, 90 * 86_400, 940), unit="s"),
    })  # fmt: skip
    at_the_event = tables["report"][["patient_id", "event_timestamp"]].iloc[:50]
    asked = pd.concat([at_the_event, asked, asked.iloc[:10]]).set_axis(random.permutation(1000) + 7)
    asked["event_timestamp"] = asked["event_timestamp"].dt.as_unit("us")
    joined = store.as_known_at(asked, settings)
    assert joined.index.equals(asked.index)
    expected = pd.concat([_slow_join(asked, tables[view], view) for view in store.VIEWS], axis=1)
    assert 100 < expected["clinical__age"].isna().sum() < 900
    for name in expected.columns:
        got, wanted = joined[name].to_numpy(), expected[name].to_numpy()
        same = (pd.isna(got) & pd.isna(wanted)) | (got == wanted)
        assert same.all(), f"{name}: {int((~same).sum())} of 1000 rows differ"


def test_a_lost_row_of_the_join_is_an_error_and_never_a_shorter_table(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast.infra.offline_stores.ibis import IbisRetrievalJob

    store.write_rows(_tables(["a", "b"], START, settings), TTL, settings)
    whole = IbisRetrievalJob.to_df
    monkeypatch.setattr(IbisRetrievalJob, "to_df", lambda job: whole(job).iloc[1:])
    asked = pd.DataFrame({"patient_id": ["a", "b"], "event_timestamp": [START, START]})
    with pytest.raises(StoreError, match="returned 1 rows for 2 entity rows"):
        store.as_known_at(asked, settings)


def test_online_values_are_those_of_the_newest_row_and_missing_ones_stay_missing(either: Settings) -> None:
    tables = _tables(["a", "b"], START, either)
    later = _rows("clinical", ["a"], [START + pd.Timedelta(hours=2)], either, start=5)
    tables["clinical"] = pd.concat([tables["clinical"], later], ignore_index=True)
    tables["clinical"].loc[1, ["age", "sex"]] = [np.nan, None]
    store.write_rows(tables, TTL, either)
    store.materialise(either)
    now = START.to_pydatetime() + timedelta(days=1)
    row = store.online_features("a", either, now)
    assert row.age == pytest.approx(later["age"].iloc[0])
    assert row.admission_time == START + pd.Timedelta(hours=2)
    other = store.online_features("b", either, now)
    assert (other.age, other.sex) == (None, None)
    assert other.bmi == pytest.approx(tables["clinical"]["bmi"].iloc[1])


def test_stale_future_and_absent_features_are_refused_with_their_age(either: Settings) -> None:
    store.write_rows(_tables(["a"], START, either), TTL, either)
    store.materialise(either)
    at = START.to_pydatetime()
    assert store.online_features("a", either, at + TTL).age is not None
    with pytest.raises(StaleFeaturesError, match="'a'.*'clinical'.*30.5 days old; at most 30 days"):
        store.online_features("a", either, at + timedelta(days=30.5))
    with pytest.raises(StaleFeaturesError, match="after the time asked for"):
        store.online_features("a", either, at - timedelta(seconds=2))
    with pytest.raises(StaleFeaturesError, match="'nobody' has no row"):
        store.online_features("nobody", either, at)


def test_a_corrected_value_replaces_the_old_one_at_the_same_event_time(either: Settings) -> None:
    tables = _tables(["a", "b"], START, either)
    store.write_rows(tables, TTL, either)
    store.materialise(either)
    corrected = tables["clinical"].iloc[:1].assign(age=99.0)
    store.write_rows({"clinical": corrected}, TTL, either)
    store.materialise(either)
    now = START.to_pydatetime() + timedelta(days=1)
    assert store.online_features("a", either, now).age == 99.0
    assert store.online_features("b", either, now).age == tables["clinical"]["age"].iloc[1]
    asked = pd.DataFrame({"patient_id": ["a", "b"], "event_timestamp": [START, START]})
    assert store.as_known_at(asked, either)["clinical__age"].tolist() == [
        99.0,
        tables["clinical"]["age"].iloc[1],
    ]


def test_a_new_ttl_holds_for_the_next_read(either: Settings) -> None:
    now = START.to_pydatetime() + timedelta(days=20)
    for days, fresh in ((30, True), (10, False), (25, True)):
        store.write_rows(_tables(["a"], START, either), timedelta(days=days), either)
        store.materialise(either)
        if fresh:
            assert store.online_features("a", either, now).age is not None
        else:
            with pytest.raises(StaleFeaturesError, match="at most 10 days"):
                store.online_features("a", either, now)


def test_a_forgotten_patient_is_gone_offline_and_online_and_others_stay(
    either: Settings, redis_url: str
) -> None:
    from redis import Redis

    store.write_rows(_tables(["sub-forget-me", "b"], START, either), TTL, either)
    store.materialise(either)
    now = START.to_pydatetime() + timedelta(days=1)
    assert store.online_features("sub-forget-me", either, now).age is not None
    assert store.forget_patient("sub-forget-me", either) == 3
    with pytest.raises(StaleFeaturesError, match="has no row"):
        store.online_features("sub-forget-me", either, now)
    assert store.online_features("b", either, now).age is not None
    files = [path for path in either.feast_dir.rglob("*") if path.is_file()]
    assert not [path.name for path in files if b"sub-forget-me" in path.read_bytes()]
    with Redis.from_url(redis_url) as client:
        assert not [key for key in client.scan_iter() if b"sub-forget-me" in key]
    assert store.forget_patient("sub-forget-me", either) == 0


def test_a_dead_online_store_is_named_without_its_password(settings: Settings) -> None:
    dead = settings.model_copy(update={"feast_online": "redis://:secret@127.0.0.1:1/0"})
    store.write_rows(_tables(["a"], START, settings), TTL, settings)
    with pytest.raises(StoreError, match="127.0.0.1:1") as caught:
        store.online_features("a", dead, START.to_pydatetime())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("online", ["memcached://host", "redis://", "redis://:a%2Cb@host:1"])
def test_an_online_store_that_feast_cannot_reach_is_refused(online: str, settings: Settings) -> None:
    with pytest.raises(SettingsError, match="WILLIS_FEAST_ONLINE"):
        store.repo_config(settings.model_copy(update={"feast_online": online}))


def test_the_yaml_of_the_cli_and_the_settings_give_one_configuration(
    repository: Path, monkeypatch: Any
) -> None:
    from feast.repo_config import load_repo_config

    monkeypatch.chdir(repository)
    folder = repository / "feature_repo"
    theirs, ours = load_repo_config(folder, folder / "feature_store.yaml"), store.repo_config(Settings())
    assert (theirs.project, theirs.provider) == (ours.project, ours.provider)
    assert theirs.entity_key_serialization_version == ours.entity_key_serialization_version
    assert theirs.offline_store == ours.offline_store
    assert (folder / theirs.registry.path).resolve() == Path(ours.registry.path)
    assert theirs.registry.cache_ttl_seconds == ours.registry.cache_ttl_seconds
    assert theirs.online_store.type == ours.online_store.type
    assert (folder / theirs.online_store.path).resolve() == Path(ours.online_store.path)


def test_feast_apply_and_the_library_register_the_same_views(
    settings: Settings, repository: Path, tmp_path: Path
) -> None:
    """The plain CLI on a copy of the feature repository, which keeps its files beside the copy."""
    import shutil

    from feast import FeatureStore

    copy = tmp_path / "checkout" / "feature_repo"
    shutil.copytree(repository / "feature_repo", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "checkout" / "build" / "feast").mkdir(parents=True)
    feast = Path(sysconfig.get_path("scripts")) / "feast"
    done = subprocess.run(
        [sys.executable, str(feast), "-c", str(copy), "apply"], cwd=copy.parent,
        env={"PYTHONPATH": str(repository)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    store.write_rows(_tables(["a"], START, settings), timedelta(days=FeaturizeParams().ttl_days), settings)
    by_cli, by_library = FeatureStore(repo_path=str(copy)), FeatureStore(config=store.repo_config(settings))
    for name in store.VIEWS:
        one, other = by_cli.get_feature_view(name), by_library.get_feature_view(name)
        assert (one.features, one.ttl, one.join_keys) == (other.features, other.ttl, other.join_keys)
    services = [s.get_feature_service(store.SERVICE).feature_view_projections for s in (by_cli, by_library)]
    assert [p.name for p in services[0]] == [p.name for p in services[1]] == list(store.VIEWS)


def test_the_views_name_exactly_the_fields_of_schema_facts_and_findings(settings: Settings) -> None:
    assert list(_columns("clinical", settings)) == CLINICAL
    assert set(_columns("imaging", settings)) == {"study_id", *FACTS, "loads"}
    assert {*FACTS, "loads"} == set(Facts.model_fields)
    expected = {"study_id", "text", "grounding_score", *report_columns(Findings())}
    assert set(_columns("report", settings)) == expected


def _featurized(tmp_path: Path, settings: Settings, params: FeaturizeParams | None = None) -> pd.DataFrame:
    ingest = tmp_path / "ingest"
    report(ingest, tmp_path / "reports", ReportParams(), settings)
    featurize(ingest, tmp_path / "reports", tmp_path / "features", params or FeaturizeParams(), settings)
    return pd.read_parquet(tmp_path / "features" / "training_table.parquet")


def test_the_training_table_has_one_row_per_study_in_order_with_its_own_values(
    tmp_path: Path, settings: Settings
) -> None:
    ingest = write_small_ingest(tmp_path / "ingest", 20)
    training = _featurized(tmp_path, settings)
    studies, table = (pd.read_parquet(ingest / f"{name}.parquet") for name in ("studies", "table"))
    facts = pd.read_parquet(ingest / "facts.parquet")
    assert training["study_id"].tolist() == studies["study_id"].tolist()
    assert (training["event_timestamp"] == studies["scan_time"] + pd.Timedelta(hours=1)).all()
    pd.testing.assert_frame_equal(training[CLINICAL], table[CLINICAL], check_dtype=False)
    for name in [column for column in facts.columns if column.startswith("load_")]:
        np.testing.assert_array_equal(training[f"f_{name}"], facts[name])
    np.testing.assert_array_equal(training["f_volume_ml"], facts["volume_ml"])
    assert training["has_table"].tolist() == table["has_table"].tolist()
    assert training["has_text"].all() and training["r_laterality"].notna().all()
    assert training["mrs"].tolist() == table["mrs"].tolist()
    assert "f_study_id" not in training and training["f_laterality"].iloc[1] == "right"


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, settings: Settings) -> None:
    write_small_ingest(tmp_path / "ingest")
    _featurized(tmp_path, settings)
    files = ("training_table.parquet", "features.json")
    first = [(tmp_path / "features" / name).read_bytes() for name in files]
    _featurized(tmp_path, settings)
    assert [(tmp_path / "features" / name).read_bytes() for name in files] == first


def test_what_is_known_after_the_decision_stays_out(tmp_path: Path, settings: Settings) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    table = pd.read_parquet(ingest / "table.parquet")
    table.loc[2, "admission_time"] += pd.Timedelta(hours=9)
    table.loc[3, "admission_time"] -= pd.Timedelta(days=40)
    table.loc[4, "admission_time"] = pd.NaT
    table.to_parquet(ingest / "table.parquet")
    training = _featurized(tmp_path, settings)
    assert training["has_table"].tolist()[:6] == [True, True, False, False, True, True]
    assert training.loc[2, CLINICAL].isna().all()


def test_a_report_that_is_never_in_time_stops_the_step(tmp_path: Path, settings: Settings) -> None:
    write_small_ingest(tmp_path / "ingest")
    with pytest.raises(StepError, match="turnaround_minutes must be below featurize.decision_minutes"):
        _featurized(tmp_path, settings, FeaturizeParams(decision_minutes=10))


def test_two_studies_of_one_patient_keep_their_own_facts_with_and_without_dates(
    tmp_path: Path, settings: Settings
) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    studies, facts = (pd.read_parquet(ingest / f"{name}.parquet") for name in ("studies", "facts"))
    for frame in (studies, facts):
        frame.loc[[1, 4], "patient_id"] = "sub-0000"
    studies.loc[4, "scan_time"] = studies.loc[1, "scan_time"] = studies.loc[0, "scan_time"]
    studies.to_parquet(ingest / "studies.parquet")
    facts.to_parquet(ingest / "facts.parquet")
    training = _featurized(tmp_path, settings)
    np.testing.assert_array_equal(training["f_volume_ml"], facts["volume_ml"])
    assert training["has_text"].all()


def test_unused_table_columns_are_empty_and_an_unknown_one_is_refused(
    tmp_path: Path, settings: Settings
) -> None:
    write_small_ingest(tmp_path / "ingest")
    training = _featurized(tmp_path, settings, FeaturizeParams(table_columns=("age", "nihss")))
    assert training["age"].notna().any() and training["nihss"].notna().any()
    assert training[[name for name in CLINICAL if name not in ("age", "nihss")]].isna().all(axis=None)
    with pytest.raises(ParamsError, match="did you mean 'nihss'"):
        _featurized(tmp_path, settings, FeaturizeParams(table_columns=("nihs",)))


def test_a_patient_id_gives_the_row_that_was_trained_on(tmp_path: Path, either: Settings) -> None:
    write_small_ingest(tmp_path / "ingest")
    training = _featurized(tmp_path, either).set_index("patient_id")
    now = datetime(2025, 3, 10, tzinfo=UTC)
    row = store.online_features("sub-0005", either, now)
    wanted = training.loc["sub-0005", CLINICAL]
    assert [getattr(row, name) for name in CLINICAL] == [None if pd.isna(v) else v for v in wanted]


def test_without_reports_the_text_is_absent_and_the_rest_is_there(tmp_path: Path, settings: Settings) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    report(ingest, tmp_path / "reports", ReportParams(writer="none"), settings)
    summary = featurize(ingest, tmp_path / "reports", tmp_path / "features", FeaturizeParams(), settings)
    assert (summary.num_rows, summary.num_without_text) == (12, 12)
    training = pd.read_parquet(tmp_path / "features" / "training_table.parquet")
    assert training["f_volume_ml"].notna().any() and training["age"].notna().any()


def test_a_missing_feature_repository_says_what_to_set(tmp_path: Path, settings: Settings) -> None:
    lost = settings.model_copy(update={"feature_repo": tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match="WILLIS_FEATURE_REPO"):
        store.write_rows({}, TTL, lost)
