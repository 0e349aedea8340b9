"""The tables behind the prediction log (willis/stores/predictions.py)."""

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
)
from sqlalchemy.engine import Engine

SCHEMA_VERSION = 1
"""Raised by one whenever a column changes; a log of another version is refused, never guessed at."""

metadata = MetaData()

schema_version = Table(
    "willis_schema",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
)

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
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    event.listen(engine, "connect", on_connect)
