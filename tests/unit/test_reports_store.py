"""Nothing is paid twice, nothing finished is lost."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.small_ingest import facts_of
from willis.errors import ReportError, ReportServerError, StoreError
from willis.reports.facts_writer import FactsWriter
from willis.reports.schema import Findings
from willis.reports.store import Attempt, ReportStore
from willis.reports.writer import Reading, Study, WrittenReport, read_study, report_key


def _study(number: int = 0) -> Study:
    volume = np.full((1, 2, 2, 2), number, np.uint8)
    return Study(volume, ("dwi",), (True,), None, (2.0, 2.0, 4.0), facts_of(number))


class Scripted:
    """A writer that answers from a list: a report, or an error to raise."""

    name, model, prompt_hash, temperature = "scripted", "m", "p", 0.0

    def __init__(self, *answers: Findings | Exception) -> None:
        self.answers = list(answers)
        self.attempts: list[int] = []

    async def write(self, study: Study, *, attempt: int) -> WrittenReport:
        self.attempts.append(attempt)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return WrittenReport(
            answer, self.model, self.prompt_hash, 0.0 if attempt == 1 else 0.7, attempt, attempt
        )


GOOD = FactsWriter().findings(facts_of(0), frozenset({"dwi"}))
WRONG = Findings.model_validate(GOOD.model_dump() | {"laterality": "right", "impression": "", "findings": ""})


def _read(writer: Scripted, store: ReportStore | None, owner: str = "sub-1") -> Reading:
    return asyncio.run(read_study(_study(), writer, store=store, owner=owner))


def test_a_contradicting_report_is_written_once_more_and_both_attempts_are_kept(tmp_path: Path) -> None:
    with ReportStore(tmp_path / "reports.sqlite") as store:
        reading = _read(writer := Scripted(WRONG, GOOD), store)
        kept = store.attempts(report_key(_study(), writer))
    assert writer.attempts == [1, 2]
    assert reading.report is not None and not reading.flagged
    assert (reading.report.attempt, reading.report.temperature, reading.report.seed) == (2, 0.7, 2)
    assert [kept[1].findings, kept[2].findings] == [WRONG, GOOD]


def test_a_report_that_stays_wrong_is_flagged_with_its_contradictions() -> None:
    reading = _read(Scripted(WRONG, WRONG), None)
    assert reading.report is not None and reading.flagged
    assert "laterality is stated right; measured left" in reading.reason
    assert reading.report.attempt == 1


def test_two_broken_answers_flag_the_study_and_are_not_paid_again(tmp_path: Path) -> None:
    with ReportStore(tmp_path / "reports.sqlite") as store:
        broken = [ReportError("no JSON"), ReportError("still no JSON")]
        reading = _read(Scripted(*broken), store)
        assert reading.report is None and reading.flagged and "still no JSON" in reading.reason
        again = Scripted()
        assert _read(again, store).reason == reading.reason
        assert again.attempts == []


def test_a_dead_server_flags_the_study_and_the_next_run_tries_again(tmp_path: Path) -> None:
    with ReportStore(tmp_path / "reports.sqlite") as store:
        assert (
            _read(Scripted(ReportServerError("503 from the server")), store).reason == "503 from the server"
        )
        assert store.count() == 0
        assert not _read(Scripted(GOOD), store).flagged


def test_the_key_changes_with_images_facts_prompt_and_model_and_with_nothing_else() -> None:
    def key(study: Study, **changes: object) -> str:
        writer = Scripted()
        vars(writer).update(changes)
        return report_key(study, writer)

    other_image = Study(_study().volume + 1, ("dwi",), (True,), None, (2.0, 2.0, 4.0), facts_of(0))
    other_facts = Study(_study().volume, ("dwi",), (True,), None, (2.0, 2.0, 4.0), facts_of(1))
    keys = [
        key(_study()), key(other_image), key(other_facts), key(_study(), model="n"),
        key(_study(), prompt_hash="q"), key(_study(), temperature=0.7),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(_study()) == keys[0]


def test_a_kept_attempt_is_never_overwritten(tmp_path: Path) -> None:
    with ReportStore(tmp_path / "reports.sqlite") as store:
        store.add("k", "a", Attempt(1, GOOD, "", "w", "m", "p"))
        store.add("k", "a", Attempt(1, WRONG, "", "w", "m", "p"))
        assert store.attempts("k")[1].findings == GOOD


def test_forgetting_a_patient_leaves_no_byte_of_the_id_and_spares_a_shared_report(tmp_path: Path) -> None:
    with ReportStore(tmp_path / "reports.sqlite") as store:
        store.add("own", "sub-forget-me", Attempt(1, GOOD, "", "w", "m", "p"))
        store.add("shared", "sub-forget-me", Attempt(1, GOOD, "", "w", "m", "p"))
        store.attempts("shared", owner="sub-other")
        assert store.forget("sub-forget-me") == 1
        assert store.attempts("own") == {}
        assert store.attempts("shared") != {}
    assert b"sub-forget-me" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_file_that_is_no_report_store_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "reports.sqlite").write_text("not a database, but long enough to look like a file" * 9)
    with pytest.raises(StoreError, match="reports.sqlite"):
        ReportStore(tmp_path / "reports.sqlite")


_WRITES_FOREVER = """
import sys
from pathlib import Path
from willis.reports.schema import Findings
from willis.reports.store import Attempt, ReportStore
with ReportStore(Path(sys.argv[1])) as store:
    for number in range(100_000):
        store.add(f"key-{number}", "sub-1", Attempt(1, Findings(num_lesions=number % 9), "", "w", "m", "p"))
        print(number, flush=True)
"""


def test_kill_9_keeps_every_report_that_was_announced(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "reports.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITES_FOREVER, str(path)], stdout=subprocess.PIPE, text=True, cwd=repository
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.strip() == "0"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    announced = [
        int(line) for line in (first + process.stdout.read()).splitlines(keepends=True) if line.endswith("\n")
    ]
    process.wait()
    process.stdout.close()
    assert len(announced) > 3
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with ReportStore(path) as store:
        kept = [store.attempts(f"key-{number}")[1].findings for number in announced]
    assert [findings.num_lesions for findings in kept if findings] == [number % 9 for number in announced]
