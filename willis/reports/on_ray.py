"""Reports across a cluster: Ray Data's workers ask the servers, and this process alone keeps what comes back.

A worker takes `report.concurrency` studies at a time. What it brings back is on the disk before the next is
looked at, so a killed run loses what was in flight and nothing else.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from willis.params import ReportParams
from willis.ray_cluster import connected
from willis.reports.store import Attempt, ReportStore
from willis.reports.studies import IngestedStudies
from willis.reports.writer import Reading, ReportWriter, read_study, report_key, run, writer_for
from willis.settings import Settings

if TYPE_CHECKING:
    import numpy as np

_ATTEMPTS = TypeAdapter(list[Attempt])


@dataclass
class _Notebook:
    """Stands for the store on a worker: what was known before, and what was written since."""

    known: dict[int, Attempt]
    written: list[Attempt] = field(default_factory=list)

    def attempts(self, key: str, owner: str = "") -> dict[int, Attempt]:
        """Return what the store knew when the study was sent."""
        return self.known

    def add(self, key: str, owner: str, attempt: Attempt) -> None:
        """Note an attempt for the way back."""
        self.written.append(attempt)


class _Worker:
    """Reads studies; it is built once per worker, where the volumes must be readable by the same path."""

    def __init__(self, ingest: Path, params: ReportParams, settings: Settings) -> None:
        writer = writer_for(params, settings)
        assert writer is not None, "the step asks workers only where there is a writer"
        self._studies, self._writer, self._params = IngestedStudies.open(ingest), writer, params

    def __call__(self, batch: "dict[str, np.ndarray[Any, Any]]") -> dict[str, list[Any]]:
        """Read some studies at once: place, key and known attempts in, new attempts and reasons out."""
        sent = zip(*(batch[name].tolist() for name in ("place", "key", "known")), strict=True)
        found = run(self._writer, self._read(list(sent)))
        return {
            "place": batch["place"].tolist(),
            "written": [_ATTEMPTS.dump_json(written).decode() for written, _ in found],
            "failure": [failure for _, failure in found],
        }

    async def _read(self, sent: list[tuple[int, str, str]]) -> list[tuple[list[Attempt], str]]:
        return await asyncio.gather(*[self._read_one(place, key, known) for place, key, known in sent])

    async def _read_one(self, place: int, key: str, known: str) -> tuple[list[Attempt], str]:
        notebook = _Notebook({attempt.number: attempt for attempt in _ATTEMPTS.validate_json(known)})
        reading = await read_study(
            self._studies.study(place),
            self._writer,
            store=notebook,
            key=key,
            max_attempts=self._params.max_attempts,
        )
        tried = notebook.known.keys() | {attempt.number for attempt in notebook.written}
        unanswered = reading.report is None and len(tried) < self._params.max_attempts
        return notebook.written, reading.reason if unanswered else ""


def read_on_ray(
    ingest: Path,
    studies: IngestedStudies,
    writer: ReportWriter,
    store: ReportStore,
    params: ReportParams,
    settings: Settings,
    on_done: Callable[[int, Reading], None],
) -> None:
    """Read every study of a cohort with `params.num_workers` workers of Ray Data.

    Args:
        ingest: output folder of `ingest`, on storage that every node mounts at the same place.
        studies: the same folder, open in this process.
        writer: whose reports are asked for; names what the store knows.
        store: where attempts are kept as they come back; opened by this process alone.
        params: how many workers, and how many studies each has in flight.
        settings: the cluster, and the servers that the workers ask.
        on_done: called with the study's place in the order and its reading.

    Raises:
        RayError: no cluster answers.
    """
    owners = studies.arrays.patient_ids
    keys = [report_key(studies.study(place), writer) for place in range(len(studies))]
    known = [list(store.attempts(key, owner).values()) for key, owner in zip(keys, owners, strict=True)]
    with connected(settings.ray_address):
        for place, written, failure in _rows(ingest, keys, known, params, settings):
            for attempt in written:
                store.add(keys[place], owners[place], attempt)
            if failure:
                on_done(place, Reading(None, None, True, failure))
                continue
            kept = read_study(
                studies.study(place), writer, store=store, key=keys[place], owner=owners[place],
                max_attempts=params.max_attempts,
            )  # fmt: skip
            on_done(place, asyncio.run(kept))


def _rows(
    ingest: Path, keys: list[str], known: list[list[Attempt]], params: ReportParams, settings: Settings
) -> Iterator[tuple[int, list[Attempt], str]]:
    """Send every study to the workers; yield place, new attempts and failure as batches come back."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    sent = [
        {"place": place, "key": key, "known": _ATTEMPTS.dump_json(one).decode()}
        for place, (key, one) in enumerate(zip(keys, known, strict=True))
    ]
    num_batches = -(-len(sent) // params.concurrency)
    answers = ray.data.from_items(sent, override_num_blocks=num_batches).map_batches(
        _Worker,
        fn_constructor_args=(ingest.resolve(), params, settings),
        batch_size=params.concurrency,
        concurrency=params.num_workers,
    )
    for row in answers.iter_rows():
        yield row["place"], _ATTEMPTS.validate_json(row["written"]), row["failure"]
