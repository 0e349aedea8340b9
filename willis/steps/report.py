"""Step `report`: one grounded report per study, written by the configured writer, never twice."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from willis.params import ReportParams
from willis.reports.schema import NUMBER_FIELDS, Findings, report_columns
from willis.reports.store import ReportStore
from willis.reports.studies import IngestedStudies
from willis.reports.writer import Reading, ReportWriter, read_studies, run, writer_for
from willis.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Done = Callable[[int, Reading], None]

_WORDS = (
    "patient_id",
    "study_id",
    "report",
    "text",
    "contradictions",
    "writer",
    "model",
    "prompt_hash",
    "reason",
)


class ReportSummary(BaseModel):
    """What the step wrote; also report.json.

    Attributes:
        num_written: attempts that had to be written now; the others were in the store.
        num_flagged: studies without a valid report or with one that contradicts what was measured.
        mean_grounding: over the reports that could be checked; None when none could.
        num_first_attempts: reports whose first attempt stood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    writer: str
    model: str | None
    prompt_hash: str | None
    num_studies: int
    num_reports: int
    num_written: int
    num_flagged: int
    num_first_attempts: int
    mean_grounding: float | None
    num_hallucinations: int
    num_omissions: int
    num_self_contradictions: int


def report(ingest: Path, out: Path, params: ReportParams, settings: Settings) -> ReportSummary:
    """Write reports.parquet, a row per study in the order of studies.parquet, and report.json.

    Killed at any moment and started again, it goes on where it stopped: finished reports are in
    `settings.report_store` and are not written again. With `params.num_workers` the workers of a Ray cluster
    ask the servers, else this process.

    Args:
        ingest: output of `ingest`.
        out: folder for this step's output.
        params: who writes.
        settings: the report store, and the server behind a language model.

    Raises:
        StepError: `ingest` is not a finished output, or the writer is unknown.
        StoreError: the report store cannot be written.
        RayError: no cluster answers.
    """
    studies = IngestedStudies.open(ingest)
    writer = writer_for(params, settings)
    readings: dict[int, Reading] = {}
    num_written = 0
    if writer is not None:
        with ReportStore(settings.report_store) as store:
            before = store.count()
            with _progress(len(studies), readings) as done:
                if params.num_workers:
                    from willis.reports.on_ray import read_on_ray

                    read_on_ray(ingest, studies, writer, store, params, settings, done)
                else:
                    _read_here(studies, writer, store, params, done)
            num_written = store.count() - before
    rows = [_row(place, studies.table, readings.get(place), params) for place in range(len(studies))]
    summary = _summarise(readings, writer, params, len(studies), num_written)
    _write(out, rows, summary)
    return summary


@contextmanager
def _progress(num_studies: int, readings: dict[int, Reading]) -> Iterator[Done]:
    """Show a bar, and yield what keeps a reading and moves the bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("writing reports", total=num_studies)

        def done(place: int, reading: Reading) -> None:
            readings[place] = reading
            progress.advance(task)

        yield done


def _read_here(
    studies: IngestedStudies, writer: ReportWriter, store: ReportStore, params: ReportParams, done: Done
) -> None:
    owned = ((owner, studies.study(index)) for index, owner in enumerate(studies.arrays.patient_ids))
    run(writer, read_studies(owned, writer, store, params, done))


def _row(
    place: int, studies: "pd.DataFrame", reading: Reading | None, params: ReportParams
) -> dict[str, Any]:
    import pandas as pd

    study = studies.iloc[place]
    written_at = pd.to_datetime(study["scan_time"], utc=True) + pd.Timedelta(
        minutes=params.turnaround_minutes
    )
    row = {"patient_id": study["patient_id"], "study_id": study["study_id"], "event_time": written_at}
    report = reading.report if reading else None
    grounding = reading.grounding if reading else None
    row |= dict.fromkeys(report_columns(Findings()))
    if report is not None:
        row |= report.model_dump(include={"writer", "model", "prompt_hash", "temperature", "seed", "attempt"})
        row |= report_columns(report.findings)
        row |= {"report": report.model_dump_json(), "text": report.text()}
    row["grounding_score"] = grounding.score if grounding else None
    row["contradictions"] = json.dumps(list(grounding.contradictions) if grounding else [])
    row["flagged"] = reading.flagged if reading else False
    row["reason"] = reading.reason if reading else "no writer is configured"
    return row


def _summarise(
    readings: dict[int, Reading],
    writer: ReportWriter | None,
    params: ReportParams,
    num_studies: int,
    num_written: int,
) -> ReportSummary:
    reports = [reading.report for reading in readings.values() if reading.report]
    grounded = [reading.grounding for reading in readings.values() if reading.grounding]
    scores = [grounding.score for grounding in grounded if grounding.score is not None]
    return ReportSummary(
        writer=params.writer,
        model=writer.model if writer else None,
        prompt_hash=writer.prompt_hash if writer else None,
        num_studies=num_studies,
        num_reports=len(reports),
        num_written=num_written,
        num_flagged=sum(reading.flagged for reading in readings.values()),
        num_first_attempts=sum(r.attempt == 1 for r in reports),
        mean_grounding=sum(scores) / len(scores) if scores else None,
        num_hallucinations=sum(g.num_hallucinations for g in grounded),
        num_omissions=sum(g.num_omissions for g in grounded),
        num_self_contradictions=sum(g.num_self_contradictions for g in grounded),
    )


def _write(out: Path, rows: list[dict[str, Any]], summary: ReportSummary) -> None:
    """Write both files whole, the summary last: it says that the step is finished."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / "reports.unfinished"
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), unfinished)
    unfinished.replace(out / "reports.parquet")
    unfinished.write_text(summary.model_dump_json(indent=2))
    unfinished.replace(out / "report.json")


def _schema() -> "pa.Schema":
    import pyarrow as pa

    fields = {name: pa.string() for name in _WORDS} | {"event_time": pa.timestamp("us", tz="UTC")}
    fields |= {name: pa.string() for name in report_columns(Findings())}
    numbers = [f"r_{name}" for name in NUMBER_FIELDS] + ["grounding_score", "temperature"]
    fields |= dict.fromkeys(numbers, pa.float64())
    return pa.schema(fields | {"seed": pa.int64(), "attempt": pa.int64(), "flagged": pa.bool_()})
