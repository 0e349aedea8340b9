"""Every report ever written, so that none is paid for twice: one SQLite file, rows are only ever added.

A row is on the disk before `add` returns, so a killed run keeps every finished report and holds no half one.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from willis.errors import StoreError
from willis.reports.schema import Findings

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT NOT NULL, number INTEGER NOT NULL, findings TEXT, reason TEXT NOT NULL,
    writer TEXT NOT NULL, model TEXT NOT NULL, prompt_hash TEXT NOT NULL,
    temperature REAL NOT NULL, seed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (key, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (
    key TEXT NOT NULL, patient_id TEXT NOT NULL, PRIMARY KEY (patient_id, key)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Attempt:
    """One stored attempt; `findings` is None when the writer's answer was not a valid report."""

    number: int
    findings: Findings | None
    reason: str
    writer: str
    model: str
    prompt_hash: str
    temperature: float = 0.0
    seed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class ReportStore:
    """Attempts by report key; use it as a context manager.

    Raises:
        StoreError: the file cannot be opened or is not a report store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Callers are asyncio tasks of one thread, but a writer may hop threads between two awaits.
            self._connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the report store {path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything added is already on the disk."""
        self._connection.close()

    def attempts(self, key: str, owner: str = "") -> dict[int, Attempt]:
        """Return what is known under a key, by attempt number, and note that `owner` uses it too."""
        with closing(self._connection.cursor()) as cursor:
            rows = cursor.execute("SELECT * FROM attempts WHERE key = ? ORDER BY number", (key,)).fetchall()
        if rows and owner:
            with self._connection:
                self._own(key, owner)
        return {row[1]: _attempt(row) for row in rows}

    def add(self, key: str, owner: str, attempt: Attempt) -> None:
        """Keep one attempt; it is on the disk when this returns. A known attempt stays as it is.

        Raises:
            StoreError: the disk is full or the file is gone; nothing is half-written.
        """
        findings = None if attempt.findings is None else attempt.findings.model_dump_json()
        row = (
            key, attempt.number, findings, attempt.reason, attempt.writer, attempt.model, attempt.prompt_hash,
            attempt.temperature, attempt.seed, attempt.prompt_tokens, attempt.completion_tokens,
            attempt.seconds,
        )  # fmt: skip
        try:
            with self._connection:
                self._connection.execute(
                    f"INSERT OR IGNORE INTO attempts VALUES ({', '.join('?' * len(row))})", row
                )
                if owner:
                    self._own(key, owner)
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot keep a report in {self.path}: {error}; free some space and run again"
            ) from error

    def count(self) -> int:
        """Return the number of attempts in the store."""
        return int(self._connection.execute("SELECT COUNT(*) FROM attempts").fetchone()[0])

    def forget(self, patient_id: str) -> int:
        """Erase a patient's reports, except those that another patient's equal study shares.

        Returns:
            Number of attempts erased.
        """
        theirs = "SELECT key FROM owners WHERE patient_id = ?"
        shared = "SELECT key FROM owners WHERE patient_id <> ?"
        with self._connection:
            erased = self._connection.execute(
                f"DELETE FROM attempts WHERE key IN ({theirs}) AND key NOT IN ({shared})",
                (patient_id, patient_id),
            ).rowcount
            self._connection.execute("DELETE FROM owners WHERE patient_id = ?", (patient_id,))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return int(erased)

    def _own(self, key: str, owner: str) -> None:
        self._connection.execute("INSERT OR IGNORE INTO owners VALUES (?, ?)", (key, owner))


def _attempt(row: tuple[object, ...]) -> Attempt:
    _, number, findings, *rest = row
    parsed = None if findings is None else Findings.model_validate_json(str(findings))
    return Attempt(number, parsed, *rest)  # type: ignore[arg-type]
