"""The report writer on a real vLLM."""

import asyncio
import json
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pandas as pd
import psutil
import pytest

from tests.fixtures.vllm import KEY, ServedReader, start_serving
from tests.small_ingest import facts_of, write_small_ingest
from willis.imaging.lesion import Facts
from willis.params import ReportParams
from willis.reports.client import LanguageModelWriter
from willis.reports.measured import measured_findings
from willis.reports.model_files import served_name
from willis.reports.prompt import messages
from willis.reports.reader_studies import ReaderStudies, make_reader_studies
from willis.reports.schema import Findings, decodable_schema
from willis.reports.slices import SHOWN
from willis.reports.train_reader import WITHOUT_INFARCT
from willis.reports.writer import Reading, Study, read_study
from willis.steps.report import report

pytestmark = pytest.mark.integration


@pytest.fixture
def study() -> Study:
    volume = np.random.default_rng(5).integers(1, 255, (3, 40, 48, 12)).astype(np.uint8)
    return Study(volume, ("dwi", "adc", "flair"), (True, True, True), None, (4.0, 4.0, 12.0), facts_of(2))


def test_an_answer_follows_the_schema_field_by_field(served_reader: ServedReader, study: Study) -> None:
    params, settings = served_reader.params, served_reader.settings
    schema = {"name": "Findings", "strict": True, "schema": decodable_schema()}
    request = {
        "model": served_name(params.model),
        "messages": messages(study, params),
        "temperature": 0,
        "max_tokens": params.max_tokens,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    url, headers = f"{settings.report_url}/chat/completions", {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(url, json=request, headers=headers, timeout=300).raise_for_status().json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    fields = json.loads(answer["choices"][0]["message"]["content"], strict=False)
    jsonschema.validate(fields, decodable_schema())
    assert list(fields) == list(Findings.model_fields)


def test_every_study_gets_a_report(served_reader: ServedReader, tmp_path: Path) -> None:
    settings = served_reader.settings.model_copy(update={"report_store": tmp_path / "reports.sqlite"})
    params = served_reader.params.model_copy(update={"timeout_s": 120.0, "deadline_s": 240.0})
    summary = report(write_small_ingest(tmp_path / "ingest", 4), tmp_path / "out", params, settings)
    written = pd.read_parquet(tmp_path / "out" / "reports.parquet")
    assert summary.model == served_name(params.model)
    assert written["report"].notna().all()


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> ReaderStudies:
    """Studies of a seed that the packaged reader was not trained on."""
    return make_reader_studies(tmp_path_factory.mktemp("unseen") / "studies", 16, 31, WITHOUT_INFARCT)


def _read(
    served_reader: ServedReader, volumes: Iterable[np.ndarray], facts: list[Facts], told: bool
) -> list[Reading]:
    params = served_reader.params.model_copy(
        update={"facts_in_prompt": told, "timeout_s": 120.0, "deadline_s": 240.0}
    )
    writer = LanguageModelWriter(params, served_reader.settings)

    async def read_all() -> list[Reading]:
        return await asyncio.gather(
            *[
                read_study(
                    Study(volume, SHOWN, (True, True, True), None, (2.0, 2.0, 4.0), own),
                    writer,
                    max_attempts=1,
                )
                for volume, own in zip(volumes, facts, strict=True)
            ]
        )

    return asyncio.run(read_all())


def test_told_facts_are_repeated_to_the_digit(served_reader: ServedReader, unseen: ReaderStudies) -> None:
    # every study is told the facts of the next one, so that none can be taken from the pictures
    told = [*unseen.facts[1:], unseen.facts[0]]
    readings = _read(served_reader, unseen.codes, told, told=True)
    repeated = sum(_repeats(reading, facts) for reading, facts in zip(readings, told, strict=True))
    assert repeated == len(told)


def _repeats(reading: Reading, facts: Facts) -> bool:
    assert reading.report is not None and reading.grounding is not None
    known = measured_findings(facts).model_dump(exclude_defaults=True)
    same = reading.report.findings.model_dump(include=set(known)) == known
    return same and not reading.grounding.contradictions


def test_the_side_of_an_infarct_is_read_from_the_pictures_alone(
    served_reader: ServedReader, unseen: ReaderStudies
) -> None:
    places = [n for n, facts in enumerate(unseen.facts) if facts.laterality in ("left", "right")]
    facts = [unseen.facts[n] for n in places]
    as_they_are = _read(served_reader, unseen.codes[places], facts, told=False)
    mirrored = _read(served_reader, unseen.codes[places][:, :, ::-1], facts, told=False)
    right = sum(_side(reading) == own.laterality for reading, own in zip(as_they_are, facts, strict=True))
    swapped = sum(_side(one) != _side(other) for one, other in zip(as_they_are, mirrored, strict=True))
    # a coin would find 10 of 12 once in fifty times
    assert len(places) >= 10 and right >= 0.8 * len(places) and swapped >= 0.8 * len(places)


def _side(reading: Reading) -> str:
    assert reading.report is not None
    return reading.report.findings.laterality


def test_a_prompt_that_is_too_long_is_told_by_the_server_s_own_words(
    served_reader: ServedReader, study: Study
) -> None:
    params = served_reader.params.model_copy(update={"max_tokens": 4000})
    reading = asyncio.run(read_study(study, LanguageModelWriter(params, served_reader.settings)))
    assert reading.flagged and "answered 400" in reading.reason and "2048" in reading.reason


def test_a_server_with_other_weights_has_no_such_model(served_reader: ServedReader, study: Study) -> None:
    params = served_reader.params.model_copy(update={"model": "reader@000000000000"})
    reading = asyncio.run(read_study(study, LanguageModelWriter(params, served_reader.settings)))
    assert reading.flagged and "no model 'reader@000000000000'" in reading.reason


def test_nobody_is_served_without_the_key_which_no_command_line_shows(served_reader: ServedReader) -> None:
    assert httpx.get(f"{served_reader.settings.report_url}/models").status_code == httpx.codes.UNAUTHORIZED
    assert not [process for process in served_reader.family() if KEY in " ".join(process.cmdline())]


def test_it_listens_on_loopback_alone(served_reader: ServedReader) -> None:
    listening = {
        connection.laddr.ip
        for process in served_reader.family()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_server_that_is_stopped_while_it_starts_leaves_nothing(tmp_path: Path, repository: Path) -> None:
    served = start_serving(tmp_path, ReportParams(writer="llm", model="nobody/nothing"), repository)
    while len(family := served.family()) < 2:
        assert served.process.poll() is None
        time.sleep(0.02)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    assert not psutil.wait_procs(family[1:], timeout=10)[1]
