"""The prediction log on SQLite; the same rules on PostgreSQL are in tests/integration/test_predictions.py."""

import dataclasses
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from tests.prediction_rows import NOON, prediction_row
from willis.errors import StoreError
from willis.stores.prediction_tables import HEAD, tune_sqlite
from willis.stores.prediction_upgrade import MIGRATIONS
from willis.stores.predictions import OutcomeResult, PredictionLog


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(f"sqlite:///{tmp_path}/log.db")


def test_a_row_comes_back_as_it_was_written(log: PredictionLog) -> None:
    row = prediction_row()
    log.append(row)
    found = log.get("p-1")
    assert found is not None
    assert found.mrs_90d is None
    for name in (field.name for field in dataclasses.fields(row)):
        if name != "embedding":
            assert getattr(found.row, name) == getattr(row, name), name
    np.testing.assert_array_equal(found.row.embedding, row.embedding)


def test_a_prediction_that_was_never_made_is_none(log: PredictionLog) -> None:
    assert log.get("nowhere") is None


def test_times_of_other_zones_are_kept_as_the_same_instant(log: PredictionLog) -> None:
    local = NOON.astimezone(timezone(timedelta(hours=9)))
    log.append(prediction_row(created_at=local))
    found = log.get("p-1")
    assert found is not None and found.row.created_at == NOON


def test_a_time_without_a_zone_is_refused(log: PredictionLog) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        log.append(prediction_row(created_at=datetime(2026, 5, 1)))
    assert log.count() == 0


def test_the_window_is_half_open_and_in_order_of_time(log: PredictionLog) -> None:
    for hour in (3, 1, 2):
        log.append(prediction_row(f"p-{hour}", created_at=NOON + timedelta(hours=hour)))
    window = log.window(NOON + timedelta(hours=1), NOON + timedelta(hours=3))
    assert list(window["prediction_id"]) == ["p-1", "p-2"]


def test_the_window_flattens_every_kind_of_column(log: PredictionLog) -> None:
    log.append(prediction_row())
    log.add_outcome("p-1", 4)
    row = log.window().iloc[0]
    assert row["age"] == 71.0 and row["sex"] == "F" and row["nihss"] is None
    assert row["f_volume_ml"] == 6.5 and row["r_laterality"] == "left" and row["a_image"] == 0.05
    assert (row["p"], row["p_raw"]) == (0.41, 0.47)
    assert bool(row["has_image"]) and not bool(row["has_text"])
    assert row["embedding_005"] == np.float32(5 / 7)
    assert row["mrs_90d"] == 4 and row["poor_outcome"] == 1
    assert row["created_at"] == NOON


def test_an_empty_window_still_has_its_columns(log: PredictionLog) -> None:
    window = log.window()
    assert len(window) == 0
    assert {"p", "created_at", "poor_outcome"} <= set(window.columns)


def test_a_value_that_is_not_a_number_is_stored_as_unknown(log: PredictionLog) -> None:
    log.append(prediction_row(table={"age": float("nan"), "sex": "F"}))
    found = log.get("p-1")
    assert found is not None and found.row.table == {"age": None, "sex": "F"}


def test_an_outcome_is_recorded_once_and_never_overwritten(log: PredictionLog) -> None:
    log.append(prediction_row())
    assert log.add_outcome("p-1", 2) is OutcomeResult.RECORDED
    assert log.add_outcome("p-1", 2) is OutcomeResult.UNCHANGED
    assert log.add_outcome("p-1", 5) is OutcomeResult.CONFLICT
    found = log.get("p-1")
    assert found is not None and found.mrs_90d == 2


def test_an_outcome_of_an_unknown_prediction_is_not_recorded(log: PredictionLog) -> None:
    assert log.add_outcome("nowhere", 2) is OutcomeResult.UNKNOWN_PREDICTION


def test_a_forgotten_patient_leaves_no_byte_in_the_files(log: PredictionLog, tmp_path: Path) -> None:
    log.append(prediction_row("p-1", patient="f" * 32, report_text="a sentence about one person"))
    log.append(prediction_row("p-2"))
    log.add_outcome("p-1", 3)
    assert log.forget("f" * 32) == 1
    assert log.get("p-1") is None and log.get("p-2") is not None
    log.close()
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"a sentence about one person" not in left and b"f" * 32 not in left


def test_retention_erases_only_what_is_older(log: PredictionLog) -> None:
    log.append(prediction_row("old", created_at=NOON - timedelta(days=31)))
    log.append(prediction_row("young", created_at=NOON - timedelta(days=29)))
    assert log.purge(30, now=NOON) == 1
    assert [log.get(name) is None for name in ("old", "young")] == [True, False]


def test_the_same_id_twice_is_refused(log: PredictionLog) -> None:
    log.append(prediction_row())
    with pytest.raises(StoreError):
        log.append(prediction_row())
    assert log.count() == 1


def test_an_error_of_the_database_shows_neither_values_nor_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        PredictionLog("postgresql+psycopg://willis:hunter2@127.0.0.1:1/willis")
    assert "does not answer" in str(error.value) and "hunter2" not in str(error.value)
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db")
    log.append(prediction_row())
    with pytest.raises(StoreError) as error:
        log.append(prediction_row(patient="somebody"))
    assert "somebody" not in str(error.value)


def test_a_log_of_a_newer_release_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    PredictionLog(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="has revision 9999; this Willis knows 0001: use the release"):
        PredictionLog(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_the_newest_revision_is_the_one_that_the_tables_name() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [HEAD]


def test_a_log_at_the_newest_revision_opens_without_alembic(tmp_path: Path, repository: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    PredictionLog(url).close()
    script = (
        "import sys; from willis.stores.predictions import PredictionLog; "
        f"PredictionLog({url!r}).close(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=repository, check=False).returncode == 0


def test_a_database_of_an_unknown_kind_is_refused_with_the_forms_that_work() -> None:
    with pytest.raises(StoreError, match="sqlite:///PATH or postgresql"):
        PredictionLog("mongo://somewhere/log")


def test_now_is_utc_when_retention_is_counted(log: PredictionLog) -> None:
    log.append(prediction_row(created_at=datetime.now(UTC)))
    assert log.purge(1) == 0


def test_a_connection_that_sqlite_turns_away_from_wal_without_waiting_asks_again(tmp_path: Path) -> None:
    """SQLite does so when several first connections switch at once, whatever its timeout says."""
    refusals = [True, True]

    class Cursor(sqlite3.Cursor):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if "journal_mode" in statement and refusals:
                refusals.pop()
                raise sqlite3.OperationalError("database is locked")
            return super().execute(statement, *values)

    class Connection(sqlite3.Connection):
        def cursor(self) -> sqlite3.Cursor:
            return super().cursor(Cursor)

    path = tmp_path / "log.db"
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(path, factory=Connection))
    tune_sqlite(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert refusals == []
