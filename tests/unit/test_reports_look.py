"""The page that shows reports beside their pictures, without a browser."""

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.small_ingest import write_small_ingest
from willis.errors import StepError
from willis.params import ReportParams
from willis.reports.entries import Entry, read_entries, totals_of, worst_first
from willis.reports.grounding import checks, grounding_of
from willis.reports.look import look, report_lines
from willis.reports.schema import Findings, Report
from willis.reports.studies import IngestedStudies
from willis.settings import Settings
from willis.steps.report import report

HOSTILE = "</script><script>alert('owned')</script> <img src=x onerror=alert(1)> \"' onmouseover=\"alert(2)"


def write_run(folder: Path) -> Path:
    """Write a small ingest and its reports by the facts writer, in `ingest` and `reports`."""
    ingest = write_small_ingest(folder / "ingest", 14)
    settings = Settings(report_store=folder / "store.sqlite")
    report(ingest, folder / "reports", ReportParams(writer="facts"), settings)
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def change(folder: Path, row: int, **values: object) -> None:
    """Change one row of reports.parquet; values that are fields of `Findings` go into the report."""
    path = folder / "reports" / "reports.parquet"
    rows = pd.read_parquet(path)
    fields = {name: value for name, value in values.items() if name in Findings.model_fields}
    if fields:
        stored = Report.model_validate_json(rows.loc[row, "report"])
        found = stored.findings.model_copy(update=fields)
        rows.loc[row, "report"] = stored.model_copy(update={"findings": found}).model_dump_json()
    for name in values.keys() - fields.keys():
        rows.loc[row, name] = values[name]
    rows.to_parquet(path)


def page(folder: Path, num_studies: int = 60) -> str:
    out = look(folder / "ingest", folder / "reports", folder / "reports.html", num_studies=num_studies)
    return out.read_text()


def entries(folder: Path) -> list[Entry]:
    return read_entries(IngestedStudies.open(folder / "ingest"), folder / "reports")


def numbers(html: str) -> list[int]:
    return [int(number) for number in re.findall(r"<h2[^>]*>Study (\d+)</h2>", html)]


def test_whatever_a_report_or_a_reason_says_stays_text(written: Path) -> None:
    change(written, 3, findings=HOSTILE, impression=HOSTILE, reason=HOSTILE, flagged=True)
    html = page(written)
    assert html.count("<script>") == html.count("</script>") == 1
    assert "<img src=x" not in html and 'onmouseover="' not in html
    assert html.count("&lt;script&gt;alert(&#39;owned&#39;)") == 3


def test_only_the_pages_own_script_may_run_and_nothing_may_be_loaded(written: Path) -> None:
    html = page(written)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert not re.findall(r'(?:src|href)="(?!data:image/png)', html)


def test_the_page_names_no_patient_and_no_folder(written: Path) -> None:
    html = page(written)
    studies = pd.read_parquet(written / "ingest" / "studies.parquet")
    named = [name for name in (*studies["patient_id"], *studies["study_id"]) if name in html]
    assert named == []
    assert str(written) not in html


def test_flagged_studies_come_first_then_the_lowest_scores_and_no_more_than_asked_for(written: Path) -> None:
    change(written, 7, laterality="bilateral", flagged=False)
    change(written, 9, flagged=True, reason="laterality is stated otherwise")
    change(written, 11, report=None, flagged=True, reason="no valid report")
    assert [entry.number for entry in worst_first(entries(written))][:4] == [12, 10, 8, 1]
    assert numbers(page(written, num_studies=3)) == [12, 10, 8]


def test_a_report_is_laid_out_with_what_was_measured_and_a_verdict_in_words(written: Path) -> None:
    change(
        written, 0, laterality="right", regions=("thalamus", "m1"), num_lesions=None, fazekas=2,
        dwi_quality="good",
    )  # fmt: skip
    lines, silent = report_lines(entries(written)[0])
    shown = {(line.field, line.stated, line.measured, line.verdict) for line in lines}
    assert ("laterality", "right", "left", "contradiction") in shown
    assert ("regions", "thalamus", "thalamus 0.0 ml", "hallucination") in shown
    assert ("regions", "m1", "", "not measured") in shown
    assert ("num_lesions", "", "1", "omission") in shown
    assert ("fazekas", "2", "", "not measured") in shown
    assert ("dwi_quality", "good", "acquired", "right") in shown
    assert "microbleeds" in silent and "fazekas" not in silent


def test_every_line_but_the_unmeasured_ones_is_one_comparison_of_the_score(written: Path) -> None:
    for entry in entries(written):
        lines, _ = report_lines(entry)
        assert sum(line.verdict != "not measured" for line in lines) == len(entry.checks)
        right = sum(line.verdict == "right" for line in lines)
        assert entry.grounding.score in (None, pytest.approx(right / max(1, len(entry.checks))))


def test_a_whole_run_is_counted(written: Path) -> None:
    change(written, 0, laterality="right", impression="", findings="")
    change(written, 1, volume_band="unknown", attempt=2)
    change(written, 6, laterality="left", impression="", findings="")
    change(written, 3, report=None, flagged=True, reason="no valid report")
    totals = totals_of(entries(written))
    assert (totals.num_studies, totals.num_reports, totals.num_flagged) == (14, 13, 1)
    assert totals.rates["omission"].total == 1
    # study 7 has no infarct: its side is stated where none is, and clashes with acute_infarct
    assert (totals.rates["contradiction"].total, totals.rates["hallucination"].total) == (1, 1)
    assert totals.rates["self-contradiction"].share == pytest.approx(1 / 13)
    assert totals.fields["laterality"]["contradiction"] == 1
    # studies 1, 2 and 7 are below 1; study 11 cannot be checked
    assert (sum(totals.bars), totals.bars[-1], totals.num_unchecked) == (12, 9, 1)
    scores = [e.grounding.score for e in entries(written) if e.grounding.score is not None]
    assert totals.mean_score == pytest.approx(np.mean(scores))


def test_only_first_attempts_that_stand_are_counted_as_such(written: Path) -> None:
    rows = pd.read_parquet(written / "reports" / "reports.parquet")
    second = Report.model_validate_json(rows.loc[0, "report"]).model_copy(update={"attempt": 2})
    change(written, 0, report=second.model_dump_json())
    change(written, 1, report=None)
    assert totals_of(entries(written)).first_stood == pytest.approx(12 / 14)


def test_pictures_are_grey_and_sides_stand_beside_them(written: Path) -> None:
    html = page(written, num_studies=1)
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    assert 1 <= len(found) <= 5
    for data, text in found:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.mode, image.size) == ("L", (3 * 112, 112))
        assert "the patient's left is on the right" in text
    for name in ("DWI", "ADC", "FLAIR"):
        assert f"<span>R <b>{name}</b> L</span>" in html


def test_studies_without_a_voxel_a_fact_or_a_report_have_their_place_all_the_same(written: Path) -> None:
    shard = written / "ingest" / "shards" / "volumes-000.npy"
    np.save(shard, np.zeros_like(np.load(shard)))
    change(written, 10, flagged=True, reason="")
    change(written, 2, report=None, text=None, grounding_score=None, flagged=True, reason="no valid report")
    html = page(written)
    assert len(numbers(html)) == 14
    assert html.count("the study shows nothing") == 8
    assert "volume unknown" in html and "not checkable" in html and "no valid report" in html


def test_a_run_without_a_writer_is_shown_as_one(written: Path) -> None:
    settings = Settings(report_store=written / "store.sqlite")
    report(written / "ingest", written / "reports", ReportParams(writer="none"), settings)
    html = page(written)
    assert "No report was written" in html
    assert html.count("no writer is configured") == 14


def test_reports_of_another_ingest_are_refused(written: Path) -> None:
    other = write_small_ingest(written / "other", 5)
    with pytest.raises(StepError, match="14 rows that are not the 5 studies"):
        look(other, written / "reports", written / "page.html")
    assert not (written / "page.html").exists()


def test_a_missing_or_an_outdated_file_says_what_to_run(written: Path) -> None:
    with pytest.raises(StepError, match="reports.parquet is missing; run `willis report`"):
        look(written / "ingest", written / "nowhere", written / "page.html")
    change(written, 4, report='{"findings": {"side": "left"}}')
    with pytest.raises(StepError, match="row 5 of reports.parquet is of another version"):
        look(written / "ingest", written / "reports", written / "page.html")


def test_a_score_is_the_count_of_the_comparisons_that_are_shown(written: Path) -> None:
    entry = entries(written)[0]
    assert entry.report is not None
    made = checks(entry.report.findings, entry.facts, frozenset({"dwi", "adc", "flair"}))
    assert grounding_of(made) == entry.grounding
