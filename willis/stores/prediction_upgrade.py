"""Bring the tables of the prediction log to the newest revision, once, however many replicas open it at once.

Imported only when a log is not at the newest revision, because Alembic is slow to load. Its `context` and
`op` are one per process, hence the lock between threads.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import inspect
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from willis.errors import StoreError
from willis.stores.prediction_tables import cause_of, place_of, revision_of

MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK_NUMBER = 7717105  # any number, as long as every release of Willis takes the same
_one_thread = threading.Lock()


def upgrade(engine: Engine, migrations: Path = MIGRATIONS) -> None:
    """Run every revision that the log lacks, in one transaction; whoever else opens it waits meanwhile.

    Args:
        engine: the log, which may be empty, of an older revision, or from before there were revisions.
        migrations: folder of the migrations environment.

    Raises:
        StoreError: this Willis does not know the log's revision, or a revision failed; the log is as it was.
    """
    with _one_thread, _alone(engine) as connection:
        config = _configuration(connection, migrations)
        known = _known_revisions(config)
        found = revision_of(connection)
        if found is None and inspect(connection).has_table("willis_schema"):
            found = _adopt(connection, config, known)
        if found not in (None, *known):
            raise _unknown(connection, f"revision {found}", known)
        _run(connection, config, found, known[-1])


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction that keeps the others waiting from its first statement to its end."""
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.detach()  # closed afterwards, not pooled: foreign keys stay off in it
            # A column changes by copying its table; the old one could not go, as outcomes refer to it.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})")
        yield connection
        connection.commit()


def _configuration(connection: Connection, migrations: Path) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    return config


def _known_revisions(config: Config) -> list[str]:
    newest_first = ScriptDirectory.from_config(config).walk_revisions()
    return [script.revision for script in newest_first][::-1]


def _adopt(connection: Connection, config: Config, known: list[str]) -> str:
    """Take over a log from before there were revisions: its tables are those of 0001."""
    version = connection.exec_driver_sql("SELECT version FROM willis_schema").scalar()
    if version != 1:
        raise _unknown(connection, f"table version {version}", known)
    command.stamp(config, "0001")
    connection.exec_driver_sql("DROP TABLE willis_schema")
    return "0001"


def _run(connection: Connection, config: Config, found: str | None, head: str) -> None:
    try:
        command.upgrade(config, "head")
        _check_references(connection)
    except (SQLAlchemyError, CommandError) as error:
        cause = cause_of(error) if isinstance(error, SQLAlchemyError) else str(error)
        raise StoreError(
            f"the prediction log at {place_of(connection.engine)} cannot go from revision {found or 'none'} "
            f"to {head}: {cause}; it is as it was: remove the cause and open it again, or set "
            "WILLIS_DATABASE_URL to another database"
        ) from None


def _check_references(connection: Connection) -> None:
    """SQLite looked away while the revisions ran; an outcome must not have lost its prediction."""
    if connection.dialect.name != "sqlite":
        return
    lost = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if lost:
        raise CommandError(f"{len(lost)} rows of {lost[0][0]} would refer to no row of {lost[0][2]}")


def _unknown(connection: Connection, found: str, known: list[str]) -> StoreError:
    return StoreError(
        f"the prediction log at {place_of(connection.engine)} has {found}; this Willis knows "
        f"{', '.join(known)}: use the release that wrote it, or set WILLIS_DATABASE_URL to another database"
    )
