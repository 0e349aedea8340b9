"""The tables behind the prediction log (willis/stores/predictions.py)."""

import sqlite3
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    inspect,
)
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

HEAD = "0001"
"""The newest revision in migrations/versions/, whose tables these are; a log that has it opens as it is."""

SQLITE_TIMEOUT_S = 30

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("prediction_id", String(40), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("bundle_version", String(64), nullable=False),
    Column("patient", String(64)),
    Column("site", String(128)),
    Column("scanner", String(128)),
    Column("modalities_used", JSON, nullable=False),
    Column("probability", Float, nullable=False),
    Column("probability_raw", Float, nullable=False),
    Column("prediction_set", JSON, nullable=False),
    Column("attribution", JSON, nullable=False),
    Column("table", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("report", JSON, nullable=False),
    Column("report_text", Text),
    Column("report_writer", String(32)),
    Column("report_model", String(256)),
    Column("report_prompt_hash", String(64)),
    Column("grounding_score", Float),
    Column("feature_times", JSON, nullable=False),
    Column("embedding", LargeBinary, nullable=False),
    Column("answer", Text, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Index("predictions_by_time", "created_at"),
    Index("predictions_by_patient", "patient"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("prediction_id", String(40), ForeignKey("predictions.prediction_id"), primary_key=True),
    Column("mrs_90d", Integer, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
)


def tune_sqlite(engine: Engine) -> None:
    """Make SQLite keep a committed row through a crash, share with other processes, and erase for real."""

    def on_connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        # Of several first connections that switch at once, SQLite turns some away without any waiting.
        _while_locked(cursor.execute, "PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    event.listen(engine, "connect", on_connect)


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


_while_locked = Retrying(
    retry=retry_if_exception(_is_locked),
    wait=wait_random(0.005, 0.05),
    stop=stop_after_delay(SQLITE_TIMEOUT_S),
    reraise=True,
)


def revision_of(connection: Connection) -> str | None:
    """Return the revision that the log's tables have, None when Alembic never was here."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    return ", ".join(sorted(found)) or None


def place_of(engine: Engine) -> str:
    """Return where the log is, for a message: its URL without the password."""
    return engine.url.render_as_string(hide_password=True)


def cause_of(error: SQLAlchemyError) -> str:
    """Return the driver's own sentence; the statement and its values hold a patient's data, so no more."""
    return str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
