"""The language model's client against a server that misbehaves."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.answering_server import (
    AnsweringServer,
    Behaviour,
    Handler,
    answering,
    drops,
    fails,
    hangs,
    says,
    sends,
)
from tests.small_ingest import facts_of, write_small_ingest
from willis.errors import SettingsError
from willis.params import ReportParams
from willis.reports.client import LanguageModelWriter
from willis.reports.schema import Findings
from willis.reports.store import ReportStore
from willis.reports.writer import Reading, Study, read_study, run
from willis.settings import Settings
from willis.steps.report import report

RIGHT = Findings(acute_infarct="yes", laterality="left", impression="Acute infarct on the left.")
WRONG = Findings(acute_infarct="yes", laterality="right")
ELSEWHERE = "https://models.example.org/v1"


@pytest.fixture
def study() -> Study:
    """A study whose infarct is on the left."""
    volume = np.random.default_rng(5).integers(1, 255, (3, 8, 9, 6)).astype(np.uint8)
    return Study(volume, ("dwi", "adc", "flair"), (True, True, True), None, (2.0, 2.0, 6.0), facts_of(2))


def writer_at(url: str, key: str | None = None, **given: Any) -> LanguageModelWriter:
    params = ReportParams.model_validate({"writer": "llm", "model": "m", "num_retries": 1, **given})
    return LanguageModelWriter(params, Settings.model_validate({"report_url": url, "report_api_key": key}))


def read(study: Study, *behaviours: Behaviour, **given: Any) -> tuple[Reading, AnsweringServer]:
    with answering(*behaviours) as server:
        return asyncio.run(read_study(study, writer_at(server.url, **given))), server


def test_a_report_holds_who_wrote_it_and_what_it_cost(study: Study) -> None:
    with answering(says(RIGHT)) as server:
        written = asyncio.run(writer_at(server.url).write(study, attempt=1))
    assert written.findings == RIGHT
    assert (written.model, written.temperature, written.seed, written.attempt) == ("m", 0.0, 0, 1)
    assert (written.cost.prompt_tokens, written.cost.completion_tokens) == (700, 90)
    assert written.cost.seconds > 0


def test_the_server_is_asked_for_every_field_of_the_schema_in_its_order(study: Study) -> None:
    _, server = read(study, says(RIGHT))
    asked = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert asked["required"] == list(Findings.model_fields) == list(asked["properties"])


@pytest.mark.parametrize("trouble", [fails(429), fails(500), fails(503), drops, sends(b"{"), sends(b"{}")])
def test_trouble_that_passes_costs_a_retry_and_no_attempt(study: Study, trouble: Behaviour) -> None:
    reading, server = read(study, trouble, says(RIGHT))
    assert reading.report is not None and reading.report.attempt == 1
    assert (len(server.requests), reading.flagged) == (2, False)


def test_a_server_that_hangs_is_left_after_the_timeout(study: Study) -> None:
    reading, server = read(study, hangs, says(RIGHT), timeout_s=0.3)
    assert reading.report is not None
    assert len(server.requests) == 2


def test_the_deadline_ends_an_attempt_however_many_retries_are_left(study: Study) -> None:
    reading, server = read(study, hangs, timeout_s=0.2, deadline_s=0.5, num_retries=20)
    assert (
        reading.flagged
        and "no answer in time" in reading.reason
        and "report.deadline_s 0.5" in reading.reason
    )
    assert len(server.requests) < 4


def test_a_server_that_asks_for_patience_is_not_asked_before(study: Study) -> None:
    patience = fails(429, "busy", retry_after_s=60)
    reading, server = read(study, patience, says(RIGHT), deadline_s=2.0, num_retries=5)
    assert reading.flagged and "no answer in time" in reading.reason
    assert len(server.requests) == 1


def test_trouble_that_stays_flags_the_study_with_its_reason(study: Study) -> None:
    reading, server = read(study, fails(500, "out of memory"))
    assert reading.report is None and reading.flagged
    assert "answered 500" in reading.reason and "out of memory" in reading.reason
    assert len(server.requests) == 2


def test_while_no_server_answers_each_further_study_is_tried_once(study: Study) -> None:
    with answering(*[fails(500)] * 3, says(RIGHT), fails(500)) as server:
        writer = writer_at(server.url)
        for expected in (2, 3, 4, 6):  # with a retry; once; once and well; with a retry again
            asyncio.run(read_study(study, writer))
            assert len(server.requests) == expected


def test_retries_go_to_the_next_server(study: Study) -> None:
    with answering(says(RIGHT)) as alive, answering(fails(500)) as dead:
        writer = writer_at(f"{dead.url},{alive.url}")
        readings = [asyncio.run(read_study(study, writer)) for _ in range(3)]
    assert [reading.flagged for reading in readings] == [False] * 3
    assert len(alive.requests) == 3


def test_no_connection_is_left_when_the_reading_has_ended(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")  # which keeps connections open
    with answering(says(RIGHT)) as server:
        writer, open_meanwhile = writer_at(server.url), []

        async def reading() -> None:
            await read_study(study, writer)
            open_meanwhile.append(server.num_connections)

        run(writer, reading())
        until = time.monotonic() + 10
        while server.num_connections and time.monotonic() < until:
            time.sleep(0.01)
        assert (open_meanwhile, server.num_connections) == ([1], 0)


def test_nobody_there_says_how_to_start_one(study: Study) -> None:
    with answering(says(RIGHT)) as server:
        url = server.url
    reading = asyncio.run(read_study(study, writer_at(url)))
    assert reading.flagged and "willis reports serve" in reading.reason


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "WILLIS_REPORT_API_KEY"), (404, "no model 'm'.*report.model"), (400, "longer than the maximum")],
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(study: Study, status: int, advice: str) -> None:
    reading, server = read(study, fails(status, "the prompt is longer than the maximum of 2048"))
    assert reading.flagged and len(server.requests) == 1
    assert pd.Series([reading.reason]).str.contains(advice).all()


def test_a_refusal_that_quotes_the_pictures_is_told_without_them(study: Study) -> None:
    reading, _ = read(study, fails(400, "bad data:image/png;base64,iVBORw0KGgo= here"))
    assert "<picture> here" in reading.reason and "iVBOR" not in reading.reason


@pytest.mark.parametrize("answer", ['{"laterality": "le', "[]", '{"laterality": "upwards"}', ""])
def test_an_answer_that_breaks_the_schema_costs_an_attempt(study: Study, answer: str) -> None:
    reading, server = read(study, says(answer), says(RIGHT))
    assert reading.report is not None and reading.report.attempt == 2
    assert len(server.requests) == 2


def test_a_raw_tab_in_a_sentence_does_not_break_the_answer(study: Study) -> None:
    answer = RIGHT.model_dump_json().replace("Acute infarct on", "Acute\tinfarct on")
    reading, _ = read(study, says(answer))
    assert reading.report is not None and reading.report.findings == RIGHT


def test_a_contradiction_is_written_again_warmer_with_another_seed_and_then_flagged(study: Study) -> None:
    reading, server = read(study, says(WRONG))
    assert [(r["temperature"], r["seed"]) for r in server.requests] == [(0.0, 0), (0.7, 1)]
    assert reading.flagged and "right" in reading.reason
    assert reading.report is not None and reading.report.attempt == 1


def test_an_answer_that_was_cut_names_the_limit(study: Study) -> None:
    reading, _ = read(study, says(RIGHT, "length"), max_tokens=100)
    assert (
        reading.flagged and "cut after 100 tokens" in reading.reason and "report.max_tokens" in reading.reason
    )


def test_another_limit_makes_another_key() -> None:
    url = "http://127.0.0.1:1/v1"
    assert writer_at(url).prompt_hash != writer_at(url, max_tokens=100).prompt_hash


@pytest.mark.parametrize(
    ("url", "key"),
    [("http://models.example.org/v1", "k"), (ELSEWHERE, None), (f"http://127.0.0.1:1/v1,{ELSEWHERE}", None)],
)
def test_a_server_elsewhere_needs_https_and_a_key(url: str, key: str | None) -> None:
    with pytest.raises(SettingsError, match=r"WILLIS_REPORT_URL.*https.*WILLIS_REPORT_API_KEY"):
        writer_at(url, key)


@pytest.mark.parametrize("url", ["", "models.example.org/v1", "https://me:secret@example.org/v1"])
def test_a_malformed_address_is_refused_without_quoting_a_password(url: str) -> None:
    with pytest.raises(SettingsError, match="WILLIS_REPORT_URL") as refused:
        writer_at(url, "k")
    assert "secret" not in str(refused.value)


def test_a_server_elsewhere_is_accepted_with_https_and_a_key() -> None:
    assert writer_at(ELSEWHERE, "k").name == "llm"


def test_the_key_is_sent_and_neither_it_nor_a_picture_is_logged(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with answering(says(RIGHT)) as server:
        asyncio.run(read_study(study, writer_at(server.url, "s3cret")))
    assert server.keys == ["Bearer s3cret"]
    assert "s3cret" not in caplog.text and "base64" not in caplog.text


def test_a_killed_run_loses_no_report_and_pays_for_none_twice(tmp_path: Path) -> None:
    num_studies, concurrency = 40, 4
    ingest = write_small_ingest(tmp_path / "ingest", num_studies)
    params = f"report: {{writer: llm, model: m, concurrency: {concurrency}}}\n"
    (tmp_path / "params.yaml").write_text(params)
    store = tmp_path / "build" / "reports.sqlite"
    with answering(says(Findings(), after_s=0.1)) as server:
        first = _start(tmp_path, ingest, server)
        while len(server.requests) < num_studies // 2:
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait()
        num_asked, num_kept = len(server.requests), _count(store)
        assert num_asked - concurrency <= num_kept < num_studies
        assert _start(tmp_path, ingest, server).wait(120) == 0
    assert len(server.requests) - num_asked == num_studies - num_kept
    reports = pd.read_parquet(tmp_path / "out" / "reports.parquet")
    assert (len(reports), reports["report"].notna().sum()) == (num_studies, num_studies)


def test_a_server_that_dies_flags_the_rest_and_the_next_run_asks_for_those_alone(tmp_path: Path) -> None:
    ingest = write_small_ingest(tmp_path / "ingest", 12)
    params = ReportParams(writer="llm", model="m", num_retries=0)
    store = tmp_path / "reports.sqlite"
    with answering(*[says(Findings())] * 5, drops) as server:
        first = report(ingest, tmp_path / "one", params, Settings(report_url=server.url, report_store=store))
    assert (first.num_reports, first.num_flagged) == (5, 7)
    with answering(says(Findings())) as server:
        again = report(ingest, tmp_path / "two", params, Settings(report_url=server.url, report_store=store))
    assert (again.num_reports, again.num_flagged, len(server.requests)) == (12, 0, 7)


def _start(folder: Path, ingest: Path, server: AnsweringServer) -> "subprocess.Popen[bytes]":
    words = ["report", "--ingest", str(ingest), "--out", "out"]
    command = [sys.executable, "-c", "from willis.cli import main; main()", *words]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"WILLIS_REPORT_URL": server.url})


def _count(store: Path) -> int:
    with ReportStore(store) as opened:
        return opened.count()
