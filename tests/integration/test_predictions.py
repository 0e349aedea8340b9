"""The prediction log under concurrency and violent ends, on real SQLite and real PostgreSQL."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests.prediction_rows import NOON, prediction_row
from willis.errors import StoreError
from willis.stores.predictions import OutcomeResult, PredictionLog

pytestmark = pytest.mark.integration

WRITER = """
import sys
from tests.prediction_rows import prediction_row
from willis.stores.predictions import PredictionLog
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = PredictionLog(url)
for index in range(count):
    log.append(prediction_row(f"{name}-{index:05d}"))
    print(f"{name}-{index:05d}", flush=True)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    new_database: Callable[[], str] = request.getfixturevalue("postgres_server")
    return new_database()


def _writer(url: str, name: str, count: int, repository: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, name, str(count)],
        cwd=repository, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_append_at_once_lose_nothing(url: str, repository: Path) -> None:
    writers = [_writer(url, f"w{index}", 40, repository) for index in range(3)]
    printed = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    log = PredictionLog(url)
    assert set(log.window()["prediction_id"]) == {name for names in printed for name in names}
    assert log.count() == 120


def test_threads_that_append_and_read_at_once_lose_nothing(url: str) -> None:
    log = PredictionLog(url)

    def append(index: int) -> bool:
        log.append(prediction_row(f"t-{index}"))
        return log.get(f"t-{index}") is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(append, range(64)))
    assert log.count() == 64


def test_every_row_that_was_acknowledged_survives_kill_9(url: str, repository: Path) -> None:
    writer = _writer(url, "w", 100_000, repository)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(25)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += writer.stdout.read().split()[:-1]  # the last line may have been cut in the pipe
    writer.wait(timeout=30)
    log = PredictionLog(url)
    stored = set(log.window()["prediction_id"])
    assert set(acknowledged) <= stored
    log.append(prediction_row("after"))


def test_of_two_outcomes_that_race_one_stands(url: str) -> None:
    log = PredictionLog(url)
    log.append(prediction_row())
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda mrs: log.add_outcome("p-1", mrs % 2), range(16)))
    found = log.get("p-1")
    assert found is not None
    assert results.count(OutcomeResult.RECORDED) == 1
    assert results.count(OutcomeResult.UNCHANGED) == 7
    assert results.count(OutcomeResult.CONFLICT) == 8


def test_a_row_reads_the_same_from_both_databases(url: str) -> None:
    log = PredictionLog(url)
    log.append(prediction_row())
    log.add_outcome("p-1", 3)
    row = log.window().iloc[0]
    assert row["created_at"] == NOON and row["f_volume_ml"] == 6.5 and row["poor_outcome"] == 1
    assert row["embedding_001"] == pytest.approx(1 / 7)


def test_a_patient_is_forgotten_with_rows_and_outcomes(url: str) -> None:
    log = PredictionLog(url)
    log.append(prediction_row("p-1", patient="f" * 32))
    log.append(prediction_row("p-2"))
    log.add_outcome("p-1", 3)
    assert (log.forget("f" * 32), log.forget("f" * 32)) == (1, 0)
    assert list(log.window()["prediction_id"]) == ["p-2"]


def test_retention_erases_what_is_older(url: str) -> None:
    log = PredictionLog(url)
    log.append(prediction_row("old", created_at=NOON - timedelta(days=31)))
    log.append(prediction_row("young", created_at=NOON - timedelta(days=29)))
    log.add_outcome("old", 1)
    assert log.purge(30, now=NOON) == 1
    assert list(log.window()["prediction_id"]) == ["young"]


def test_logs_that_open_an_empty_database_at_once_make_its_tables_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        logs = list(pool.map(lambda _: PredictionLog(url), range(6)))
    logs[0].append(prediction_row())
    assert logs[-1].count() == 1


def test_no_space_left_is_an_error_that_names_the_database(repository: Path, tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/log.db")
    log.append(prediction_row("before"))
    with log._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    log.close()
    full = PredictionLog(f"sqlite:///{tmp_path}/log.db")
    from sqlalchemy import event

    event.listen(
        full._engine, "connect", lambda raw, record: raw.execute(f"PRAGMA max_page_count={pages}")
    )  # SQLite's own way to meet SQLITE_FULL
    full.close()
    with pytest.raises(StoreError, match=r"log\.db.*full"):
        for index in range(20):
            full.append(prediction_row(f"p-{index}", report_text="x" * 4096))
    assert PredictionLog(f"sqlite:///{tmp_path}/log.db").get("before") is not None
