"""The tables of the prediction log through its revisions, on real SQLite and real PostgreSQL."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect

from tests.old_log import make_old_log
from tests.prediction_rows import prediction_row
from willis.errors import StoreError
from willis.stores.prediction_tables import HEAD, metadata, tune_sqlite
from willis.stores.prediction_upgrade import MIGRATIONS, upgrade
from willis.stores.predictions import PredictionLog

pytestmark = pytest.mark.integration

OLD_IDS = [f"old-{index}" for index in range(30)]

OPENER = """
import sys
from tests.prediction_rows import prediction_row
import willis.stores.prediction_upgrade  # loaded before they start, so that they meet
from willis.stores.predictions import PredictionLog
print("ready", flush=True)
sys.stdin.readline()
PredictionLog(sys.argv[1]).append(prediction_row(sys.argv[2]))
"""

SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"

def upgrade():
    op.add_column("predictions", sa.Column("ward", sa.String(8), server_default="east", nullable=False))
    with op.batch_alter_table("predictions") as table:  # SQLite copies the table
        table.alter_column("site", type_=sa.String(256))
    op.execute("UPDATE predictions SET site = 'moved'")
    {last}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Calling it gives the URL of an empty database."""
    if request.param == "sqlite":
        numbers = count()
        return lambda: f"sqlite:///{tmp_path}/log-{next(numbers)}.db"
    new_database: Callable[[], str] = request.getfixturevalue("postgres_server")
    return new_database


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    return new_url()


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        tune_sqlite(engine)
    return engine


def _contents(url: str) -> dict[str, Any]:
    """Every table with its columns' names and its rows."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {name: connection.exec_driver_sql(f"SELECT * FROM {name}") for name in _tables(connection)}
        contents = {name: (list(rows.keys()), sorted(map(str, rows))) for name, rows in found.items()}
    engine.dispose()
    return contents


def _tables(bind: Any) -> set[str]:
    return set(inspect(bind).get_table_names())


def _shape(engine: Engine) -> dict[str, Any]:
    """What the database says of the log's tables: columns, keys and indexes."""
    found = inspect(engine)
    return {
        name: {
            "columns": [column | {"type": str(column["type"])} for column in found.get_columns(name)],
            "primary": found.get_pk_constraint(name),
            "foreign": found.get_foreign_keys(name),
            "indexes": sorted(found.get_indexes(name), key=lambda index: str(index["name"])),
        }
        for name in ("predictions", "outcomes")
    }


def _with_second_revision(folder: Path, last: str = "") -> Path:
    """A copy of the migrations that goes one revision further."""
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0002_ward.py").write_text(SECOND.format(last=last))
    return folder


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("was", ["empty", "old"])
def test_the_revisions_lead_to_the_tables_that_the_code_reads(new_url: Callable[[], str], was: str) -> None:
    url, other = new_url(), _engine(new_url())
    if was == "old":
        make_old_log(url, OLD_IDS)
    PredictionLog(url).close()
    metadata.create_all(other)
    engine = _engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert _shape(engine) == _shape(other)
    assert _tables(engine) == {"predictions", "outcomes", "alembic_version"}


def test_a_log_from_before_the_revisions_is_adopted_with_every_row(url: str) -> None:
    make_old_log(url, OLD_IDS)
    before = _contents(url)
    log = PredictionLog(url)
    after = _contents(url)
    assert before.keys() - after.keys() == {"willis_schema"}
    assert after["alembic_version"] == (["version_num"], ["('0001',)"])
    assert {name: after[name] for name in ("predictions", "outcomes")} == {
        name: before[name] for name in ("predictions", "outcomes")
    }
    log.append(prediction_row("new"))
    assert set(log.window()["prediction_id"]) == {"new", *OLD_IDS}
    assert set(log.window()["mrs_90d"].dropna()) == {4.0}


@pytest.mark.parametrize("was", ["empty", "old"])
def test_processes_that_open_a_log_at_once_bring_it_up_once(url: str, was: str, repository: Path) -> None:
    if was == "old":
        make_old_log(url, OLD_IDS)
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, url, f"new-{index}"], cwd=repository, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(4)
    ]  # fmt: skip
    assert [opener.stdout.readline() for opener in openers if opener.stdout] == ["ready\n"] * 4
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("\n")
        opener.stdin.flush()
    errors = [opener.communicate(timeout=120)[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, errors
    assert _contents(url)["alembic_version"] == (["version_num"], ["('0001',)"])
    assert PredictionLog(url).count() == 4 + (len(OLD_IDS) if was == "old" else 0)


def test_threads_that_open_different_logs_at_once_do_not_mix_them_up(new_url: Callable[[], str]) -> None:
    urls = [new_url() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        logs = list(pool.map(PredictionLog, urls))
    for index, log in enumerate(logs):
        log.append(prediction_row(f"p-{index}"))
    assert [list(log.window()["prediction_id"]) for log in logs] == [[f"p-{index}"] for index in range(6)]


@pytest.mark.parametrize("was", ["at 0001", "old"])
def test_a_log_of_an_older_revision_goes_up_with_every_row_and_outcome(
    url: str, was: str, tmp_path: Path
) -> None:
    make_old_log(url, OLD_IDS)
    if was == "at 0001":
        PredictionLog(url).close()
    before = _contents(url)
    upgrade(_engine(url), _with_second_revision(tmp_path / "100% of them"))
    after = _contents(url)
    assert after["alembic_version"][1] == ["('0002',)"]
    assert after["outcomes"] == before["outcomes"] and len(before["outcomes"][1]) == len(OLD_IDS)
    assert after["predictions"][0] == [*before["predictions"][0], "ward"]
    assert len(after["predictions"][1]) == len(OLD_IDS)
    assert all("'moved'" in row and "'east'" in row for row in after["predictions"][1])


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ('op.execute("SELECT 1 FROM nowhere")', "nowhere"),
        ('op.execute("DELETE FROM predictions")', "outcomes"),
    ],
)
def test_a_revision_that_fails_leaves_the_log_as_it_was(
    url: str, last: str, says: str, tmp_path: Path
) -> None:
    make_old_log(url, OLD_IDS)
    before = _contents(url)
    migrations = _with_second_revision(tmp_path / "migrations", last)
    with pytest.raises(
        StoreError, match=f"cannot go from revision 0001 to 0002: .*{says}.*; it is as it was"
    ):
        upgrade(_engine(url), migrations)
    assert _contents(url) == before
    assert PredictionLog(url).count() == len(OLD_IDS)


def test_a_database_whose_tables_are_in_the_way_is_left_as_it_was(url: str) -> None:
    _execute(url, "CREATE TABLE outcomes (of_somebody_else INTEGER)")
    before = _contents(url)
    with pytest.raises(StoreError, match=r"from revision none to 0001: .*outcomes.* already exists"):
        PredictionLog(url)
    assert _contents(url) == before


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "revision 9999"),
        ("INSERT INTO alembic_version VALUES ('beef')", "revision 0001, beef"),
    ],
)
def test_a_revision_that_this_release_does_not_know_is_refused_untouched(
    url: str, change: str, found: str
) -> None:
    log = PredictionLog(url)
    log.append(prediction_row())
    log.close()
    _execute(url, change)
    before = _contents(url)
    with pytest.raises(
        StoreError, match=f"has {found}; this Willis knows {HEAD}: use the release that wrote"
    ):
        PredictionLog(url)
    assert _contents(url) == before


def test_an_old_log_of_another_version_is_refused_untouched(url: str) -> None:
    make_old_log(url, OLD_IDS)
    _execute(url, "UPDATE willis_schema SET version = 99")
    before = _contents(url)
    with pytest.raises(StoreError, match=f"has table version 99; this Willis knows {HEAD}"):
        PredictionLog(url)
    assert _contents(url) == before
