"""Callers of the endpoint: patients of a cohort, one request each, as an application would send them."""

import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict

from willis.cohort.bids import StudyFiles
from willis.cohort.schema import ClinicalRow

NUM_CALLERS = 2
TIMEOUT_S = 60


class StreamRun(BaseModel):
    """What a stream of requests got back.

    Attributes:
        bundle_version: what the answers say who gave them; several in the order of the first answers.
    """

    model_config = ConfigDict(frozen=True)

    bundle_version: str
    since: AwareDatetime
    until: AwareDatetime
    num_predictions: int
    num_failed: int
    num_outcomes: int
    p50_ms: float | None
    first_prediction_id: str | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One patient to ask about, and what became of that patient where it is known."""

    study: StudyFiles
    clinical: ClinicalRow | None
    scanner: str | None
    mrs_90d: int | None


@dataclass(frozen=True)
class Reply:
    """One answer: an id, or the problem."""

    prediction_id: str | None
    bundle_version: str | None
    milliseconds: float
    problem: str | None
    outcome_recorded: bool


def form_of(call: Call) -> str:
    """The JSON part of a request."""
    space = "mni152" if call.study.in_standard_space else "native"
    clinical = None if call.clinical is None else call.clinical.model_dump(mode="json", exclude_none=True)
    return json.dumps({"clinical": clinical, "scanner": call.scanner, "space": space})


def files_of(study: StudyFiles) -> dict[str, str]:
    """The file parts of a request: part name -> path."""
    files = {name: str(path) for name, path in study.volumes()}
    return files | ({"planes": str(study.planes)} if study.planes else {})


def send_stream(url: str, calls: Sequence[Call]) -> StreamRun:
    """Send every call and wait for all answers; a failed one is counted and told, never raised."""
    since = datetime.now(UTC)
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client, ThreadPoolExecutor(NUM_CALLERS) as pool:
        replies = list(pool.map(lambda call: _ask(client, call), calls))
    answered = [reply for reply in replies if reply.prediction_id]
    return StreamRun(
        bundle_version=", ".join(dict.fromkeys(reply.bundle_version or "" for reply in answered)),
        since=since,
        until=datetime.now(UTC),
        num_predictions=len(answered),
        num_failed=len(replies) - len(answered),
        num_outcomes=sum(reply.outcome_recorded for reply in replies),
        p50_ms=round(statistics.median(reply.milliseconds for reply in answered), 1) if answered else None,
        first_prediction_id=answered[0].prediction_id if answered else None,
        failures=tuple(reply.problem for reply in replies if reply.problem),
    )


def _ask(client: httpx.Client, call: Call) -> Reply:
    started = time.perf_counter()
    try:
        with ExitStack() as stack:
            files = {
                name: (name, stack.enter_context(Path(path).open("rb")))
                for name, path in files_of(call.study).items()
            }
            answer = client.post("/v1/predictions", data={"request": form_of(call)}, files=files)
        milliseconds = (time.perf_counter() - started) * 1000
        if answer.status_code >= 400:
            return Reply(None, None, milliseconds, f"{answer.status_code} {answer.text[:300]}", False)
        told = answer.json()
        prediction_id, version = told["prediction_id"], told["bundle_version"]
        recorded = _tell_outcome(client, prediction_id, call.mrs_90d)
        return Reply(prediction_id, version, milliseconds, None, recorded)
    except httpx.HTTPError as error:
        milliseconds = (time.perf_counter() - started) * 1000
        return Reply(None, None, milliseconds, f"{type(error).__name__}: {error}", False)


def _tell_outcome(client: httpx.Client, prediction_id: str, mrs_90d: int | None) -> bool:
    if mrs_90d is None:
        return False
    answer = client.post("/v1/outcomes", json={"prediction_id": prediction_id, "mrs_90d": mrs_90d})
    return answer.is_success
