"""The feature store: the library's one door to Feast (nothing else imports it).

What Feast does not promise and this module does:

- a point-in-time join returns one row per entity row, in the order asked for (`as_known_at`);
- an online value older than its view allows is refused, with its age (`online_features`);
- values that were corrected replace the old ones, in Redis too (`write_rows`, `materialise`);
- a patient can be erased (`forget_patient`).

The views themselves stand in `feature_repo/features.py`, which is loaded by its path, as `feast apply` does.
"""

import contextlib
import fcntl
import io
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from willis.cohort.schema import CLINICAL_COLUMNS, ClinicalRow
from willis.errors import SettingsError, StaleFeaturesError, StoreError
from willis.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PROJECT = "willis"
SERVICE = "stroke_outcome"
VIEWS = ("clinical", "imaging", "report")
KEY_VERSION = 3
REDIS_TIMEOUT_S = 5
EVENT_TIME = "event_timestamp"


def write_rows(tables: "Mapping[str, pd.DataFrame]", ttl: timedelta, settings: Settings) -> None:
    """Store the rows of the three views offline and register the views.

    A patient named by `tables` has all earlier rows of that view replaced, so that a corrected value or event
    time leaves no rival behind; other patients keep theirs. Each file is replaced whole or not at all.

    Args:
        tables: view name -> patient_id, event_timestamp (UTC) and exactly the view's columns.
        ttl: how long after its event time a row may be used.
        settings: where Feast lives.

    Raises:
        StoreError: columns differ from the view's, or the folder cannot be written.
        SettingsError: the feature repository is not where the settings say.
    """
    views = _definitions(settings, ttl)
    with _exclusive(settings), _as_store_error("writing features", settings):
        for name, rows in tables.items():
            _replace_patients(_rows_path(settings, name), rows, _arrow_schema(getattr(views, name)))
        with _quiet():
            _store(settings).apply(list(views))
    _opened.cache_clear()


def as_known_at(entities: "pd.DataFrame", settings: Settings) -> "pd.DataFrame":
    """Join every view's newest row that was known at each entity row's time and had not expired.

    Args:
        entities: patient_id and event_timestamp (UTC); patients may repeat.
        settings: where Feast lives.

    Returns:
        One row per entity row, same order and index; columns `<view>__<column>`, missing where nothing was
        known.

    Raises:
        StoreError: Feast lost, invented or duplicated a row.
    """
    asked = entities[["patient_id", EVENT_TIME]].reset_index(drop=True)
    asked[EVENT_TIME] = _microseconds(asked[EVENT_TIME])
    asked["row_id"] = range(len(asked))
    with _as_store_error("joining features", settings):
        store = _store(settings)
        names = [f"{view}:{column}" for view in VIEWS for column in _columns_of(store, view)]
        with _duckdb_session():
            job = store.get_historical_features(entity_df=asked, features=names, full_feature_names=True)
            joined = job.to_df()
    if len(joined) != len(asked) or set(joined["row_id"]) != set(asked["row_id"]):
        raise StoreError(
            f"the point-in-time join returned {len(joined)} rows for {len(asked)} entity rows; each must "
            f"come back once ({settings.feast_dir}); use the duckdb offline store"
        )
    ordered: pd.DataFrame = joined.set_index("row_id").loc[asked["row_id"]].set_index(entities.index)
    return ordered.drop(columns=["patient_id", EVENT_TIME])


def materialise(settings: Settings) -> None:
    """Copy each patient's newest row of every view into the online store.

    Raises:
        StoreError: the online store does not answer.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    times = [pq.read_table(_rows_path(settings, name), columns=[EVENT_TIME])[EVENT_TIME] for name in VIEWS]
    ranges = [pc.min_max(column).as_py() for column in times if len(column)]
    if not ranges:
        return
    second = timedelta(seconds=1)
    start, end = min(r["min"] for r in ranges) - second, max(r["max"] for r in ranges) + second
    with (
        _exclusive(settings),
        _as_store_error("materialising features", settings),
        _quiet(),
        _duckdb_session(),
    ):
        _store(settings).materialize(start, end)
    _opened.cache_clear()


def online_features(patient_id: str, settings: Settings, now: datetime) -> ClinicalRow:
    """Read one patient's clinical table as it is known at `now`.

    Args:
        patient_id: as in the cohort.
        settings: where Feast lives.
        now: the time of the prediction, with a time zone.

    Raises:
        StaleFeaturesError: the patient has no row, its row lies after `now`, or it is older than the view's
            ttl; the message says which and how old.
        StoreError: the online store does not answer.
    """
    with _as_store_error("reading online features", settings):
        store = _opened(settings.feast_dir, settings.feast_online)
        ttl = store.get_feature_view("clinical", allow_registry_cache=True).ttl
        names = [f"clinical:{column.name}" for column in CLINICAL_COLUMNS]
        answer = store.get_online_features(features=names, entity_rows=[{"patient_id": patient_id}])
    values = answer.to_dict(include_event_timestamps=True)
    seconds = max(values[f"{column.name}__ts"][0] for column in CLINICAL_COLUMNS)
    if not seconds:
        raise StaleFeaturesError(
            f"patient {patient_id!r} has no row in the view 'clinical'; send the table with the request, or "
            "run `willis featurize` on a cohort that holds the patient"
        )
    known_since = datetime.fromtimestamp(seconds, UTC)
    _require_fresh(patient_id, known_since, now, ttl)
    row = {column.name: values[column.name][0] for column in CLINICAL_COLUMNS}
    return ClinicalRow(**row, admission_time=known_since)


def forget_patient(patient_id: str, settings: Settings) -> int:
    """Erase a patient's rows from every view, offline and online.

    Returns:
        Number of offline rows erased.

    Raises:
        StoreError: a store does not answer; run it again, erasing twice does no harm.
    """
    erased = 0
    with _exclusive(settings), _as_store_error("erasing a patient", settings):
        for name in VIEWS:
            erased += _erase_offline(_rows_path(settings, name), patient_id)
        key = _entity_key(patient_id)
        if settings.feast_online == "sqlite":
            _erase_sqlite(settings.feast_dir / "online.db", key)
        else:
            _erase_redis(settings.feast_online, key)
    return erased


def repo_config(settings: Settings) -> Any:
    """Build Feast's configuration from the settings; equals feature_repo/feature_store.yaml by default.

    Raises:
        SettingsError: WILLIS_FEAST_ONLINE is neither `sqlite` nor a Redis URL.
    """
    from feast.repo_config import RegistryConfig, RepoConfig

    root = settings.feast_dir.resolve()
    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry=RegistryConfig(path=str(root / "registry.db"), cache_ttl_seconds=60),
        offline_store={"type": "duckdb"},
        online_store=_online_config(settings.feast_online, root),
        entity_key_serialization_version=KEY_VERSION,
        repo_path=root,
    )


def _require_fresh(patient_id: str, known_since: datetime, now: datetime, ttl: timedelta) -> None:
    age = now - known_since
    what = f"the row of patient {patient_id!r} in the view 'clinical' is from {known_since.isoformat()}"
    if age < timedelta(0):
        raise StaleFeaturesError(f"{what}, after the time asked for, {now.isoformat()}")
    if age > ttl:
        raise StaleFeaturesError(
            f"{what}, {age / timedelta(days=1):.1f} days old; at most {ttl / timedelta(days=1):g} days are "
            "allowed (params.yaml: featurize.ttl_days); send the table with the request"
        )


def _online_config(online: str, root: Path) -> dict[str, object]:
    if online == "sqlite":
        return {"type": "sqlite", "path": str(root / "online.db")}
    url = urlsplit(online)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise SettingsError(
            f"WILLIS_FEAST_ONLINE is {url.scheme or online!r}; it must be sqlite or redis[s]://host:port[/db]"
        )
    options: dict[str, object] = {"db": int(url.path.strip("/") or 0), "ssl": url.scheme == "rediss"}
    options |= {"socket_timeout": REDIS_TIMEOUT_S, "socket_connect_timeout": REDIS_TIMEOUT_S}
    options |= {key: unquote(value) for key in ("username", "password") if (value := getattr(url, key))}
    parts = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    if any("," in part for part in parts):
        raise SettingsError(
            "WILLIS_FEAST_ONLINE holds a comma in user or password, which Feast cannot express"
        )
    connection = ",".join([f"{url.hostname}:{url.port or 6379}", *parts])
    # Without skip_dedup Feast keeps the old values when a corrected row has the same event time.
    return {"type": "redis", "connection_string": connection, "skip_dedup": True}


def _store(settings: Settings) -> Any:
    from feast import FeatureStore

    settings.feast_dir.mkdir(parents=True, exist_ok=True)
    return FeatureStore(config=repo_config(settings))


@lru_cache(maxsize=4)
def _opened(feast_dir: Path, feast_online: str) -> Any:
    """Keep the reading side open: loading the registry costs far more than a read."""
    return _store(Settings(feast_dir=feast_dir, feast_online=feast_online))


def _definitions(settings: Settings, ttl: timedelta) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    path = settings.feature_repo / "features.py"
    if not path.is_file():
        raise SettingsError(
            f"{path} does not exist; start from the repository's root or set WILLIS_FEATURE_REPO to the "
            "folder that holds features.py"
        )
    spec = spec_from_file_location("willis_feature_definitions", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.definitions(settings.feast_dir.resolve() / "offline", ttl)


def _columns_of(store: Any, view: str) -> list[str]:
    return [field.name for field in store.get_feature_view(view).features]


def _rows_path(settings: Settings, view: str) -> Path:
    return settings.feast_dir / "offline" / f"{view}.parquet"


def _arrow_schema(view: Any) -> "pa.Schema":
    import pyarrow as pa
    from feast.types import String

    types = {field.name: pa.string() if field.dtype == String else pa.float64() for field in view.features}
    return pa.schema({"patient_id": pa.string(), EVENT_TIME: pa.timestamp("us", tz="UTC"), **types})


def _replace_patients(path: Path, rows: "pd.DataFrame", schema: "pa.Schema") -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if set(rows.columns) != set(schema.names):
        odd = sorted(set(rows.columns) ^ set(schema.names))
        raise StoreError(
            f"columns of {path.stem} rows differ from its view by {odd} (feature_repo/features.py)"
        )
    rows = rows.assign(**{EVENT_TIME: _microseconds(rows[EVENT_TIME])})
    table = pa.Table.from_pandas(rows[schema.names], schema=schema, preserve_index=False)
    if path.exists():
        old = pq.read_table(path)
        old = old.filter(pc.invert(pc.is_in(old["patient_id"], table["patient_id"].combine_chunks())))
        if old.schema.names == schema.names:
            table = pa.concat_tables([old.cast(schema), table])
    _write_whole(table.sort_by([("patient_id", "ascending"), (EVENT_TIME, "ascending")]), path)


def _erase_offline(path: Path, patient_id: str) -> int:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        return 0
    table = pq.read_table(path)
    kept = table.filter(pc.not_equal(table["patient_id"], patient_id))
    _write_whole(kept, path)
    return int(table.num_rows - kept.num_rows)


def _write_whole(table: "pa.Table", path: Path) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, coerce_timestamps="us")
    unfinished.replace(path)


def _entity_key(patient_id: str) -> bytes:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    key = EntityKey(join_keys=["patient_id"], entity_values=[Value(string_val=patient_id)])
    return bytes(serialize_entity_key(key, entity_key_serialization_version=KEY_VERSION))


def _erase_sqlite(path: Path, key: bytes) -> None:
    import sqlite3

    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        # Otherwise the bytes stay readable in the file's free pages.
        connection.execute("PRAGMA secure_delete = ON")
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        for table in tables & {f"{PROJECT}_{view}" for view in VIEWS}:
            connection.execute(f'DELETE FROM "{table}" WHERE entity_key = ?', (key,))


def _erase_redis(url: str, key: bytes) -> None:
    from redis import Redis

    with Redis.from_url(
        url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    ) as connection:
        connection.delete(key + PROJECT.encode())


def _microseconds(times: "pd.Series[Any]") -> "pd.Series[Any]":
    import pandas as pd

    return pd.to_datetime(times, utc=True).dt.as_unit("us")


@contextlib.contextmanager
def _exclusive(settings: Settings) -> Iterator[None]:
    """Let one process at a time change the store; the lock ends with its process."""
    settings.feast_dir.mkdir(parents=True, exist_ok=True)
    with (settings.feast_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Feast prints its progress and offers no switch."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _duckdb_session() -> Iterator[None]:
    """Close the connection that Feast leaves open through ibis; DuckDB complains of it when Python ends."""
    import warnings

    import ibis  # type: ignore[import-untyped]

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="ibis")
            yield
    finally:
        ibis.get_backend().disconnect()
        ibis.options.default_backend = None


@contextlib.contextmanager
def _as_store_error(doing: str, settings: Settings) -> Iterator[None]:
    from duckdb import Error as DuckError
    from feast.errors import FeastError
    from redis.exceptions import RedisError

    try:
        yield
    except (DuckError, FeastError, RedisError, OSError) as error:
        where = settings.feast_online.rpartition("@")[2]
        raise StoreError(
            f"{doing} failed: {error} (feature store {settings.feast_dir}, online {where})"
        ) from error
