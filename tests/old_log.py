"""A prediction log from before there were revisions: its tables as they were made then; never change them."""

import json
from collections.abc import Iterable

from sqlalchemy import Engine, create_engine, text

from tests.prediction_rows import NOON

TABLES = """
CREATE TABLE willis_schema (id INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (id));
INSERT INTO willis_schema (id, version) VALUES (1, 1);
CREATE TABLE predictions (
    prediction_id VARCHAR(40) NOT NULL, created_at {time} NOT NULL, request_id VARCHAR(128) NOT NULL,
    bundle_version VARCHAR(64) NOT NULL, patient VARCHAR(64), site VARCHAR(128), scanner VARCHAR(128),
    modalities_used JSON NOT NULL, probability FLOAT NOT NULL, probability_raw FLOAT NOT NULL,
    prediction_set JSON NOT NULL, attribution JSON NOT NULL, "table" JSON NOT NULL, facts JSON NOT NULL,
    report JSON NOT NULL, report_text TEXT, report_writer VARCHAR(32), report_model VARCHAR(256),
    report_prompt_hash VARCHAR(64), grounding_score FLOAT, feature_times JSON NOT NULL,
    embedding {bytes} NOT NULL, answer TEXT NOT NULL, latency_ms FLOAT NOT NULL, PRIMARY KEY (prediction_id)
);
CREATE INDEX predictions_by_time ON predictions (created_at);
CREATE INDEX predictions_by_patient ON predictions (patient);
CREATE TABLE outcomes (
    prediction_id VARCHAR(40) NOT NULL, mrs_90d INTEGER NOT NULL, recorded_at {time} NOT NULL,
    PRIMARY KEY (prediction_id), FOREIGN KEY(prediction_id) REFERENCES predictions (prediction_id)
);
"""
TYPES = {
    "sqlite": {"time": "DATETIME", "bytes": "BLOB"},
    "postgresql": {"time": "TIMESTAMP WITH TIME ZONE", "bytes": "BYTEA"},
}


def make_old_log(url: str, prediction_ids: Iterable[str]) -> None:
    """Make a log in an empty database; every prediction has the outcome 4."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in TABLES.format(**TYPES[engine.dialect.name]).split(";")[:-1]:
            connection.exec_driver_sql(statement)
    for prediction_id in prediction_ids:
        _add(engine, prediction_id)
    engine.dispose()


def _add(engine: Engine, prediction_id: str) -> None:
    moment = NOON.strftime("%Y-%m-%d %H:%M:%S.%f") + ("" if engine.dialect.name == "sqlite" else "+00:00")
    values = {
        "prediction_id": prediction_id, "created_at": moment, "request_id": "r-1", "bundle_version": "0123",
        "patient": "a" * 32, "modalities_used": json.dumps(["image"]), "probability": 0.41,
        "probability_raw": 0.47, "prediction_set": json.dumps(["good"]),
        "attribution": json.dumps({"image": 0.05}), "table": json.dumps({"age": 71.0}),
        "facts": json.dumps({"volume_ml": 6.5}), "report": "{}", "feature_times": "{}",
        "embedding": b"\0\0\x80?", "answer": "{}", "latency_ms": 81.5,
    }  # fmt: skip
    names = ", ".join(f'"{name}"' for name in values)
    places = ", ".join(f":{name}" for name in values)
    outcome = {"prediction_id": prediction_id, "mrs_90d": 4, "recorded_at": moment}
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO predictions ({names}) VALUES ({places})"), values)
        connection.execute(
            text("INSERT INTO outcomes VALUES (:prediction_id, :mrs_90d, :recorded_at)"), outcome
        )
