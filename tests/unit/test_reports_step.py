"""The step `report` on a small ingest."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.small_ingest import write_small_ingest
from willis.errors import StepError
from willis.params import ReportParams
from willis.reports.schema import Report
from willis.reports.store import ReportStore
from willis.settings import Settings
from willis.steps.report import report


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(report_store=tmp_path / "store" / "reports.sqlite")


def test_every_study_gets_a_report_in_the_order_of_the_studies(tmp_path: Path, settings: Settings) -> None:
    ingest = write_small_ingest(tmp_path / "ingest", 14)
    summary = report(ingest, tmp_path / "out", ReportParams(), settings)
    written = pd.read_parquet(tmp_path / "out" / "reports.parquet")
    studies = pd.read_parquet(ingest / "studies.parquet")
    assert written["study_id"].tolist() == studies["study_id"].tolist()
    assert (written["event_time"] - studies["scan_time"] == pd.Timedelta(minutes=30)).all()
    assert (summary.num_reports, summary.num_written, summary.num_flagged) == (14, 14, 0)
    assert summary.mean_grounding == 1.0
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == summary.model_dump()


def test_columns_and_stored_report_say_the_same(tmp_path: Path, settings: Settings) -> None:
    report(write_small_ingest(tmp_path / "ingest"), tmp_path / "out", ReportParams(), settings)
    row = pd.read_parquet(tmp_path / "out" / "reports.parquet").iloc[3].to_dict()
    stored = Report.model_validate_json(row["report"])
    assert row["text"] == stored.text()
    assert row["r_laterality"] == stored.findings.laterality == "right"
    assert row["r_num_lesions"] == stored.findings.num_lesions
    assert stored.measured.volume_ml == pytest.approx(0.7 + 3.3 * 3)
    assert (row["model"], row["attempt"], row["seed"], row["temperature"]) == ("measured-facts", 1, 0, 0.0)
    assert json.loads(row["contradictions"]) == []


def test_a_second_run_writes_nothing_anew_and_gives_the_same_bytes(
    tmp_path: Path, settings: Settings
) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    report(ingest, tmp_path / "one", ReportParams(), settings)
    again = report(ingest, tmp_path / "two", ReportParams(), settings)
    assert again.num_written == 0
    one, two = ((tmp_path / name / "reports.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_other_wording_means_other_reports(tmp_path: Path, settings: Settings) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    report(ingest, tmp_path / "one", ReportParams(), settings)
    assert report(ingest, tmp_path / "two", ReportParams(max_words=20), settings).num_written == 12


def test_without_a_writer_every_row_is_there_and_empty(tmp_path: Path, settings: Settings) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    summary = report(ingest, tmp_path / "out", ReportParams(writer="none"), settings)
    written = pd.read_parquet(tmp_path / "out" / "reports.parquet")
    assert (summary.num_studies, summary.num_reports, summary.num_flagged) == (12, 0, 0)
    assert written["text"].isna().all() and len(written) == 12


def test_studies_without_facts_stop_the_step_with_what_to_do(tmp_path: Path, settings: Settings) -> None:
    ingest = write_small_ingest(tmp_path / "ingest")
    facts = pd.read_parquet(ingest / "facts.parquet")
    facts.iloc[1:].to_parquet(ingest / "facts.parquet")
    with pytest.raises(StepError, match="lacks .'sub-0000_ses-1'.*run `willis ingest` again"):
        report(ingest, tmp_path / "out", ReportParams(), settings)
    assert not (tmp_path / "out").exists()


_SLOWLY = """
import asyncio, sys
from pathlib import Path
from willis.params import ReportParams
from willis.reports.facts_writer import FactsWriter
from willis.settings import Settings
from willis.steps.report import report

written = FactsWriter.write

async def slowly(self, study, *, attempt):
    print(study.facts.volume_ml, flush=True)
    await asyncio.sleep(0.1)
    return await written(self, study, attempt=attempt)

FactsWriter.write = slowly
root = Path(sys.argv[1])
settings = Settings(report_store=root / "reports.sqlite")
report(root / "ingest", root / "out", ReportParams(concurrency=2), settings)
"""


def test_a_run_killed_in_the_middle_goes_on_and_writes_no_finished_report_again(
    tmp_path: Path, repository: Path
) -> None:
    write_small_ingest(tmp_path / "ingest", 30)
    command = [sys.executable, "-c", _SLOWLY, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository)
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    with ReportStore(tmp_path / "reports.sqlite") as store:
        finished = store.count()
    assert finished >= 8
    again = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=True)
    calls = [line for line in again.stdout.splitlines() if re.fullmatch(r"None|[\d.]+", line)]
    assert len(calls) == 30 - finished
    assert len(pd.read_parquet(tmp_path / "out" / "reports.parquet")["report"].dropna()) == 30
