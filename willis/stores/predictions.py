"""The prediction log: one committed row per answer, in SQLite or PostgreSQL.

A row is on disk before `append` returns, so an answer that left the endpoint can always be traced. Patients
appear only as pseudonyms (willis/pseudonym.py). Outcomes arrive weeks later and stand in their own table.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import create_engine, delete, func, insert, select
from sqlalchemy.engine import Connection, Engine, RowMapping
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from willis.errors import StoreError
from willis.stores.prediction_tables import (
    HEAD,
    SQLITE_TIMEOUT_S,
    cause_of,
    outcomes,
    place_of,
    predictions,
    revision_of,
    tune_sqlite,
)

if TYPE_CHECKING:
    import pandas as pd

Scalar = float | int | str | bool | None


@dataclass(frozen=True)
class PredictionRow:
    """Everything that is kept of one answer.

    `table`, `facts` and `report` are flat: one scalar per column, without the prefixes that `window` adds.
    `feature_times` holds the event time of each online feature view that was read, ISO 8601. `embedding` is
    the fused representation, float32 of shape (width,). `answer` is the JSON that the caller received.
    """

    prediction_id: str
    created_at: datetime
    request_id: str
    bundle_version: str
    modalities_used: tuple[str, ...]
    probability: float
    probability_raw: float
    prediction_set: tuple[str, ...]
    attribution: Mapping[str, float]
    embedding: NDArray[np.float32]
    answer: str
    patient: str | None = None
    site: str | None = None
    scanner: str | None = None
    table: Mapping[str, Scalar] = field(default_factory=dict)
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    report: Mapping[str, Scalar] = field(default_factory=dict)
    report_text: str | None = None
    report_writer: str | None = None
    report_model: str | None = None
    report_prompt_hash: str | None = None
    grounding_score: float | None = None
    feature_times: Mapping[str, str] = field(default_factory=dict)
    latency_ms: float = 0.0


@dataclass(frozen=True)
class LoggedPrediction:
    """One row as the log holds it, with its outcome when that is known."""

    row: PredictionRow
    mrs_90d: int | None = None


class OutcomeResult(Enum):
    """What became of an outcome that was reported."""

    RECORDED = "recorded"
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"
    UNKNOWN_PREDICTION = "unknown prediction"


class PredictionLog:
    """Append, read, forget and purge predictions.

    Opening brings the tables to the newest revision first (prediction_upgrade.py).

    Args:
        url: SQLAlchemy URL, `sqlite:///path` or `postgresql+psycopg://user@host/database`.

    Raises:
        StoreError: the database does not answer, this Willis does not know the revision of its tables, or
            they cannot be brought to the newest one; the log is as it was.
    """

    def __init__(self, url: str) -> None:
        self._engine = _open_engine(url)
        try:
            _prepare_tables(self._engine)
        except SQLAlchemyError as error:
            raise _unreachable(self._engine, error) from None

    def append(self, row: PredictionRow) -> None:
        """Write one row and commit it.

        Raises:
            StoreError: the row is not on disk; the answer must not leave.
        """
        with self._transaction() as connection:
            connection.execute(insert(predictions).values(**_to_columns(row)))

    def get(self, prediction_id: str) -> LoggedPrediction | None:
        """Return one prediction, or None when the log does not hold it.

        Raises:
            StoreError: the database does not answer.
        """
        query = _with_outcome().where(predictions.c.prediction_id == prediction_id)
        with self._transaction() as connection:
            found = connection.execute(query).mappings().first()
        return None if found is None else LoggedPrediction(_to_row(found), found["mrs_90d"])

    def add_outcome(self, prediction_id: str, mrs_90d: int) -> OutcomeResult:
        """Attach a 90-day outcome; the first one stands and is never overwritten.

        Raises:
            StoreError: the database does not answer.
        """
        with self._transaction() as connection:
            return _record_outcome(connection, prediction_id, mrs_90d)

    def window(self, since: datetime | None = None, until: datetime | None = None) -> "pd.DataFrame":
        """Return the rows of [since, until) as the monitor wants them, oldest first.

        Columns: prediction_id, created_at (UTC), patient, bundle_version, site, scanner, has_image, has_text,
        has_table, p, p_raw, prediction_set, latency_ms, grounding_score, the clinical columns by name,
        f_<fact>, r_<report field>, a_<modality> (attribution), embedding_000..., mrs_90d and poor_outcome
        (NaN until known).

        Raises:
            StoreError: the database does not answer.
        """
        query = _with_outcome().order_by(predictions.c.created_at, predictions.c.prediction_id)
        if since is not None:
            query = query.where(predictions.c.created_at >= _as_utc(since))
        if until is not None:
            query = query.where(predictions.c.created_at < _as_utc(until))
        with self._transaction() as connection:
            found = connection.execute(query).mappings().all()
        return _flatten(found)

    def forget(self, patient: str) -> int:
        """Erase every row and outcome of one patient.

        Args:
            patient: the pseudonym, as stored.

        Returns:
            Number of predictions erased.

        Raises:
            StoreError: the database does not answer; nothing was erased.
        """
        return self._erase(predictions.c.patient == patient)

    def purge(self, retention_days: int, now: datetime | None = None) -> int:
        """Erase rows older than the retention period; returns how many.

        Raises:
            StoreError: the database does not answer; nothing was erased.
        """
        oldest = (now or datetime.now(UTC)) - timedelta(days=retention_days)
        return self._erase(predictions.c.created_at < _as_utc(oldest))

    def count(self) -> int:
        """Return the number of predictions in the log; doubles as a health check.

        Raises:
            StoreError: the database does not answer.
        """
        with self._transaction() as connection:
            return int(connection.execute(select(func.count()).select_from(predictions)).scalar_one())

    def close(self) -> None:
        """Close every connection of this process."""
        self._engine.dispose()

    def _erase(self, condition: Any) -> int:
        doomed = select(predictions.c.prediction_id).where(condition)
        with self._transaction() as connection:
            connection.execute(delete(outcomes).where(outcomes.c.prediction_id.in_(doomed)))
            num_erased = connection.execute(delete(predictions).where(condition)).rowcount
        if num_erased and self._engine.dialect.name == "sqlite":
            with self._transaction() as connection:  # else the erased bytes live on in the write-ahead log
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return num_erased

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._engine)


class _Transaction:
    """`engine.begin()` whose database errors are StoreErrors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.begin()

    def __enter__(self) -> Connection:
        try:
            return self._context.__enter__()
        except SQLAlchemyError as error:
            raise _unreachable(self._engine, error) from None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except SQLAlchemyError as failure:
            raise _unreachable(self._engine, failure) from None
        if isinstance(error, SQLAlchemyError):
            raise _unreachable(self._engine, error) from None


def _open_engine(url: str) -> Engine:
    try:
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(url, connect_args={"timeout": SQLITE_TIMEOUT_S})
            tune_sqlite(engine)
            return engine
        return create_engine(
            url, pool_size=4, max_overflow=4, pool_pre_ping=True, pool_timeout=10,
            connect_args={"connect_timeout": 5},
        )  # fmt: skip
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise StoreError(
            f"the prediction log cannot be opened: {error}; "
            "give sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE (WILLIS_DATABASE_URL)"
        ) from None


def _prepare_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        if revision_of(connection) == HEAD:
            return
    from willis.stores.prediction_upgrade import upgrade

    upgrade(engine)


def _unreachable(engine: Engine, error: SQLAlchemyError) -> StoreError:
    return StoreError(
        f"the prediction log at {place_of(engine)} does not answer: {cause_of(error)} (WILLIS_DATABASE_URL)"
    )


def _record_outcome(connection: Connection, prediction_id: str, mrs_90d: int) -> OutcomeResult:
    known = select(predictions.c.prediction_id).where(predictions.c.prediction_id == prediction_id)
    if connection.execute(known).first() is None:
        return OutcomeResult.UNKNOWN_PREDICTION
    values = {"prediction_id": prediction_id, "mrs_90d": mrs_90d, "recorded_at": datetime.now(UTC)}
    try:
        with connection.begin_nested():
            connection.execute(insert(outcomes).values(**values))
        return OutcomeResult.RECORDED
    except IntegrityError:
        query = select(outcomes.c.mrs_90d).where(outcomes.c.prediction_id == prediction_id)
        stands = connection.execute(query).scalar_one()
        return OutcomeResult.UNCHANGED if stands == mrs_90d else OutcomeResult.CONFLICT


def _with_outcome() -> Any:
    joined = predictions.outerjoin(outcomes, outcomes.c.prediction_id == predictions.c.prediction_id)
    return select(predictions, outcomes.c.mrs_90d).select_from(joined)


def _as_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; times of the log are UTC")
    return moment.astimezone(UTC)


def _to_columns(row: PredictionRow) -> dict[str, Any]:
    values = asdict(row)
    values["created_at"] = _as_utc(row.created_at)
    values["embedding"] = np.ascontiguousarray(row.embedding, dtype="<f4").tobytes()
    for name in ("attribution", "table", "facts", "report", "feature_times"):
        values[name] = {key: _storable(value) for key, value in getattr(row, name).items()}
    values["modalities_used"] = list(row.modalities_used)
    values["prediction_set"] = list(row.prediction_set)
    return values


def _storable(value: Scalar) -> Scalar:
    """JSON has no NaN; unknown is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_row(found: RowMapping) -> PredictionRow:
    values = {name: found[name] for name in PredictionRow.__dataclass_fields__}
    values["created_at"] = _stored_time(found["created_at"])
    values["embedding"] = np.frombuffer(found["embedding"], dtype="<f4").astype(np.float32)
    values["modalities_used"] = tuple(found["modalities_used"])
    values["prediction_set"] = tuple(found["prediction_set"])
    return PredictionRow(**values)


def _stored_time(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _flatten(found: Any) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame([_flat_row(row) for row in found])
    if table.empty:
        return pd.DataFrame(columns=["prediction_id", "created_at", "p", "p_raw", "mrs_90d", "poor_outcome"])
    table["created_at"] = pd.to_datetime(table["created_at"], utc=True).astype("datetime64[us, UTC]")
    embeddings = [np.frombuffer(row["embedding"], dtype="<f4") for row in found]
    widths = {len(embedding) for embedding in embeddings}
    wide = np.full((len(embeddings), max(widths)), np.nan, dtype=np.float32)
    for place, embedding in zip(wide, embeddings, strict=True):
        place[: len(embedding)] = embedding
    names = [f"embedding_{index:03d}" for index in range(wide.shape[1])]
    return pd.concat([table, pd.DataFrame(wide, columns=names)], axis=1)


def _flat_row(row: RowMapping) -> dict[str, Scalar | datetime]:
    mrs = row["mrs_90d"]
    flat: dict[str, Scalar | datetime] = {
        "prediction_id": row["prediction_id"],
        "created_at": _stored_time(row["created_at"]),
        "patient": row["patient"],
        "bundle_version": row["bundle_version"],
        "site": row["site"],
        "scanner": row["scanner"],
        "p": row["probability"],
        "p_raw": row["probability_raw"],
        "prediction_set": ",".join(row["prediction_set"]),
        "latency_ms": row["latency_ms"],
        "grounding_score": row["grounding_score"],
        "mrs_90d": float("nan") if mrs is None else float(mrs),
        "poor_outcome": float("nan") if mrs is None else float(mrs >= 3),
    }
    flat |= {f"has_{name}": name in row["modalities_used"] for name in ("image", "text", "table")}
    flat |= dict(row["table"])
    flat |= {f"f_{name}": value for name, value in row["facts"].items()}
    flat |= {f"r_{name}": value for name, value in row["report"].items()}
    flat |= {f"a_{name}": value for name, value in row["attribution"].items()}
    return flat
