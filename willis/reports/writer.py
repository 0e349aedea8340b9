"""Who writes reports: the interface every writer fulfils, and the road from studies to stored reports.

A writer gets a study (its volumes, planes and facts) and returns `Findings`; everything around it, keys,
resumption, grounding, a second attempt, flags, is the same for a template and for a language model.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from willis.cohort.schema import Sequence
from willis.errors import ReportError, ReportServerError
from willis.imaging.lesion import Facts
from willis.params import ReportParams
from willis.reports.grounding import Grounding, ground
from willis.reports.measured import measured_numbers
from willis.reports.schema import Findings, Report
from willis.reports.store import Attempt, ReportStore
from willis.settings import Settings

UInt8 = npt.NDArray[np.uint8]
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Study:
    """What a writer may look at. It holds no patient id, so none can reach a prompt or a log.

    Attributes:
        volume: (C, X, Y, Z) codes, RAS+ (`willis.imaging.shards.decode`).
        sequences: names of the C channels.
        sequence_present: which of them were acquired.
        planes: (P, H, W) uint8, 0 where nothing is known; None without planes.
        spacing_mm: voxel edges of `volume`.
        facts: what was measured.
    """

    volume: UInt8
    sequences: tuple[Sequence, ...]
    sequence_present: tuple[bool, ...]
    planes: UInt8 | None
    spacing_mm: tuple[float, float, float]
    facts: Facts

    def acquired(self) -> frozenset[str]:
        """Return the sequences that a reader could have seen; a given lesion mask is not one."""
        pairs = zip(self.sequences, self.sequence_present, strict=True)
        seen = {name for name, present in pairs if present and name != "lesion"}
        return frozenset(seen | ({"flair"} if self.planes is not None else set()))


@dataclass(frozen=True)
class Cost:
    """What one attempt took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class WrittenReport:
    """One attempt of a writer, with all that is needed to repeat it."""

    findings: Findings
    model: str
    prompt_hash: str
    temperature: float
    seed: int
    attempt: int
    cost: Cost = field(default_factory=Cost)


class ReportWriter(Protocol):
    """A template, or a client of a language model's server."""

    name: str
    model: str
    prompt_hash: str
    temperature: float

    async def write(self, study: Study, *, attempt: int) -> WrittenReport:
        """Write one report; attempt 1 at `temperature`, later ones with another recorded seed.

        Raises:
            ReportError: the answer breaks the schema or says what it must not; costs an attempt.
            ReportServerError: the server does not answer after the writer's own retries; costs nothing.
        """
        ...

    async def close(self) -> None:
        """Let go of what this event loop's writing holds; writing again is allowed."""
        ...


def run(writer: ReportWriter, reading: Coroutine[Any, Any, R]) -> R:
    """Run to the end in an event loop of its own, and leave no connection of the writer behind."""

    async def run_and_close() -> R:
        try:
            return await reading
        finally:
            await writer.close()

    return asyncio.run(run_and_close())


class AttemptStore(Protocol):
    """Where `read_study` finds and leaves attempts: a `ReportStore`, or what stands for it on a worker."""

    def attempts(self, key: str, owner: str = "") -> dict[int, Attempt]:
        """Return what is known under a key, by attempt number."""
        ...

    def add(self, key: str, owner: str, attempt: Attempt) -> None:
        """Keep one attempt."""
        ...


@dataclass(frozen=True)
class Reading:
    """What came of one study.

    Attributes:
        report: None when no attempt gave a valid report.
        grounding: of that report.
        flagged: True when the report is missing or contradicts what was measured.
        reason: why it is flagged, else empty.
    """

    report: Report | None
    grounding: Grounding | None
    flagged: bool
    reason: str


def writer_for(params: ReportParams, settings: Settings) -> ReportWriter | None:
    """Return the configured writer, or None when reports are switched off.

    Raises:
        SettingsError: the language model's server may not be called as it is configured.
        StepError: the packaged reader is not there.
    """
    if params.writer == "none":
        return None
    if params.writer == "facts":
        from willis.reports.facts_writer import FactsWriter

        return FactsWriter(max_words=params.max_words)
    from willis.reports.client import LanguageModelWriter

    return LanguageModelWriter(params, settings)


def report_key(study: Study, writer: ReportWriter) -> str:
    """Name a report by all that decides it: images, facts, prompt, model and temperature."""
    digest = hashlib.sha256()
    for part in (writer.name, writer.model, writer.prompt_hash, repr(writer.temperature)):
        digest.update(part.encode() + b"\0")
    digest.update(repr((study.sequences, study.sequence_present, study.spacing_mm)).encode() + b"\0")
    for array in (study.volume, study.planes):
        if array is not None:
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        digest.update(b"\0")
    digest.update(study.facts.model_dump_json().encode())
    return digest.hexdigest()


async def read_study(
    study: Study,
    writer: ReportWriter,
    *,
    store: AttemptStore | None = None,
    key: str = "",
    owner: str = "",
    max_attempts: int = 2,
) -> Reading:
    """Write and check one study's report; what the store already holds is not written again.

    Args:
        study: what the writer may look at.
        writer: who writes.
        store: where attempts are kept; None keeps nothing (an endpoint's request).
        key: the study's `report_key` where the caller has it; hashing a study's pixels takes time.
        owner: patient id, kept beside the report so that it can be erased; never given to the writer.
        max_attempts: a broken or contradicting attempt is followed by another up to this number.
    """
    key = key or (report_key(study, writer) if store else "")
    known = store.attempts(key, owner) if store else {}
    tried: list[Attempt] = []
    for number in range(1, max_attempts + 1):
        attempt = known.get(number)
        if attempt is None:
            try:
                attempt = await _attempt(study, writer, number)
            except ReportServerError as error:
                return Reading(None, None, True, str(error))
            if store:
                store.add(key, owner, attempt)
        tried.append(attempt)
        if attempt.findings is not None and not _ground(attempt.findings, study).contradictions:
            break
    return _best(study, tried)


async def read_studies(
    studies: Iterable[tuple[str, Study]],
    writer: ReportWriter,
    store: ReportStore,
    params: ReportParams,
    on_done: Callable[[int, Reading], None],
) -> None:
    """Read many studies, a bounded number at a time, in whatever order they finish.

    Args:
        studies: owner and study; drawn one by one, so that only those in flight are in memory.
        writer: who writes.
        store: where finished attempts are kept at once.
        params: concurrency and number of attempts.
        on_done: called with the study's place in the order and its reading.
    """
    queue = enumerate(studies)

    async def work() -> None:
        for place, (owner, study) in queue:
            reading = await read_study(
                study, writer, store=store, owner=owner, max_attempts=params.max_attempts
            )
            on_done(place, reading)

    async with asyncio.TaskGroup() as group:
        for _ in range(params.concurrency):
            group.create_task(work())


async def _attempt(study: Study, writer: ReportWriter, number: int) -> Attempt:
    try:
        written = await writer.write(study, attempt=number)
    except ReportError as error:
        return Attempt(number, None, str(error), writer.name, writer.model, writer.prompt_hash)
    return Attempt(
        number, written.findings, "", writer.name, written.model, written.prompt_hash, written.temperature,
        written.seed, written.cost.prompt_tokens, written.cost.completion_tokens, written.cost.seconds,
    )  # fmt: skip


def _best(study: Study, tried: list[Attempt]) -> Reading:
    """Take the attempt with the fewest contradictions, the earlier one of equals."""
    valid = [(a, a.findings, _ground(a.findings, study)) for a in tried if a.findings is not None]
    if not valid:
        return Reading(None, None, True, f"no valid report in {len(tried)} attempts: {tried[-1].reason}")
    attempt, findings, grounding = min(valid, key=lambda item: (len(item[2].contradictions), item[0].number))
    report = Report(
        findings=findings, measured=measured_numbers(study.facts), writer=attempt.writer,
        model=attempt.model, prompt_hash=attempt.prompt_hash, temperature=attempt.temperature,
        seed=attempt.seed, attempt=attempt.number,
    )  # fmt: skip
    return Reading(report, grounding, bool(grounding.contradictions), "; ".join(grounding.contradictions))


def _ground(findings: Findings, study: Study) -> Grounding:
    return ground(findings, study.facts, study.acquired())
