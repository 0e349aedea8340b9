"""summary.json: a reason for every number that is not there, and the bundle that really answered."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas as pd
import pytest

from infra.local.circle import Circle
from infra.local.cost import Cost
from infra.local.source import source_of
from infra.local.stream import Call, StreamRun, send_stream
from infra.local.summary import Summary, summarise
from pipelines.local import StepRun
from tests.evaluations import an_evaluation, rival
from willis.cohort.bids import StudyFiles
from willis.cohort.schema import ClinicalRow
from willis.params import Params, TrainParams
from willis.steps.promote import Promotion
from willis.steps.report import ReportSummary
from willis.steps.train import TrainSummary
from willis.steps.version import CohortVersion

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
VERSION = CohortVersion(
    md5="abc.dir", size_bytes=1, num_files=1, git_revision=None, git_dirty=False, remote="here", pushed=True,
    num_pushed=1,
)  # fmt: skip
REPORTED = ReportSummary(
    writer="llm", model="reader@1", prompt_hash="h", num_studies=2, num_reports=2, num_written=2,
    num_flagged=1, num_first_attempts=2, mean_grounding=0.75, num_hallucinations=0, num_omissions=0,
    num_self_contradictions=0,
)  # fmt: skip
TRAINED = TrainSummary(
    num_workers=2, epochs=3, best_epoch=2, best_val_auc=0.7, best_val_loss=0.5, num_parameters=1,
    num_patients=1, prevalence=0.3, seconds_per_patient_step=0.1, data_wait_share=0.0, seed=1,
    params=TrainParams(),
)  # fmt: skip


def a_run(version: str) -> StreamRun:
    return StreamRun(
        bundle_version=version, since=NOON, until=NOON, num_predictions=3, num_failed=0, num_outcomes=0,
        p50_ms=40.0, first_prediction_id="p", failures=(),
    )  # fmt: skip


@pytest.fixture
def circle(tmp_path: Path) -> Circle:
    """Finished steps on a BIDS tree; the promoted candidate was refused, an older bundle answered."""
    records = {
        "version": ("version.json", VERSION),
        "report": ("report.json", REPORTED),
        "train": ("train.json", TRAINED),
        "promote": ("promotion.json", Promotion(version="new", alias="champion", moved=False, reason="no")),
        "evaluate": ("evaluation.json", an_evaluation(scores=tuple(
            rival(name, "score", None) for name in ("ASTRAL", "THRIVE", "DRAGON")
        ))),
    }  # fmt: skip
    for step, (name, record) in records.items():
        (tmp_path / step).mkdir()
        (tmp_path / step / name).write_text(record.model_dump_json())
    (tmp_path / "ingest").mkdir()
    pd.DataFrame({"patient_id": ["a", "b"]}).to_parquet(tmp_path / "ingest" / "studies.parquet")
    (tmp_path / "tree").mkdir()
    source = source_of(f"bids:{tmp_path / 'tree'}", tmp_path, Params())
    steps = {name: StepRun(1.0, False, tmp_path / name) for name in (*records, "ingest")}
    return Circle(source, tmp_path, steps, {"ordinary": a_run("old"), "new_scanner": None}, {})


def summary_of(circle: Circle) -> Summary:
    cost = Cost(seconds=1.0, peak_memory_mb=1.0, disk_mb=1.0)
    return summarise(circle, {}, circle.root / "index.html", cost)


@pytest.mark.parametrize("kind", ["bids", "soop"])
def test_every_number_that_is_not_there_has_its_reason(circle: Circle, kind: str, tmp_path: Path) -> None:
    source = source_of(f"{kind}:{tmp_path / 'tree'}", tmp_path, Params())
    summary = summary_of(replace(circle, source=source))
    numbers = {"ceiling": summary.evaluation.ceiling, **summary.evaluation.baselines}
    missing = {name for name, value in numbers.items() if value is None}
    assert missing == {"ceiling", "ASTRAL", "THRIVE", "DRAGON"}
    assert set(summary.absent) == {*missing, "new_scanner"}
    assert summary.absent["THRIVE"] == "fewer than half have: delay"
    assert all(summary.absent.values())


def test_the_bundle_that_answered_is_named_beside_the_one_that_was_refused(circle: Circle) -> None:
    summary = summary_of(circle)
    assert (summary.bundle.version, summary.serving.bundle_version) == ("new", "old")
    both = replace(circle, streams={"ordinary": a_run("old"), "new_scanner": a_run("older")})
    assert summary_of(both).serving.bundle_version == "old, older"


class _Endpoint(BaseHTTPRequestHandler):
    """Answers every request as a bundle that it names itself."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"prediction_id": "p", "bundle_version": "that answered"}).encode()
        self.send_response(201)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stream_names_the_bundle_of_its_answers(url: str) -> None:
    calls = [Call(StudyFiles("sub-1", "sub-1"), ClinicalRow(age=70), None, None)] * 3
    run = send_stream(url, calls)
    assert (run.bundle_version, run.num_predictions, run.num_outcomes) == ("that answered", 3, 0)


def test_the_summary_says_who_wrote_the_reports(circle: Circle) -> None:
    reports = summary_of(circle).reports
    assert (reports.model, reports.num_reports, reports.num_flagged) == ("reader@1", 2, 1)
    assert reports.mean_grounding == 0.75
