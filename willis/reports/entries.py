"""Every report of a run held against the facts, study by study and in numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from willis.errors import StepError
from willis.imaging.lesion import Facts
from willis.reports.grounding import Check, Grounding, Verdict, checks, grounding_of
from willis.reports.schema import Findings, Report
from willis.reports.studies import IngestedStudies
from willis.reports.writer import Study

if TYPE_CHECKING:
    import pandas as pd

NUM_BARS = 10
"""Of the scores below 1; a score of 1 has a bar of its own."""


@dataclass(frozen=True)
class Entry:
    """One study's report, held against the facts anew, so that score, table and marks come from one count.

    Attributes:
        number: row in studies.parquet, from 1.
        report: None where nobody wrote a valid one.
        checks: every comparison; none without a report.
        grounding: the count of them.
        flagged: as the step `report` flagged it, with its reason.
        facts: what was measured.
    """

    number: int
    report: Report | None
    checks: tuple[Check, ...]
    grounding: Grounding
    flagged: bool
    reason: str
    facts: Facts


@dataclass(frozen=True)
class Rate:
    """In how many reports a verdict was given at least once, and how often in all."""

    share: float | None
    total: int


@dataclass(frozen=True)
class Totals:
    """The whole run in numbers.

    Attributes:
        first_stood: share of the studies whose first attempt was valid and stands.
        mean_score: over the reports that could be checked.
        rates: per verdict but `right`, over the reports.
        fields: how often each field was right, wrong and so on, in the order of `Findings`.
        bars: number of reports per tenth of the score, and those with a score of 1.
        num_unchecked: reports of which nothing could be checked.
    """

    num_studies: int
    num_reports: int
    num_flagged: int
    first_stood: float
    mean_score: float | None
    rates: dict[Verdict, Rate]
    fields: dict[str, Counter[Verdict]]
    bars: tuple[int, ...]
    num_unchecked: int


def read_entries(studies: IngestedStudies, reports: Path) -> list[Entry]:
    """Read every report of a run and hold it against the facts.

    Raises:
        StepError: reports.parquet is missing, of other studies, or of another version of the schema.
    """
    import pandas as pd

    path = reports / "reports.parquet"
    try:
        rows = pd.read_parquet(path)
    except FileNotFoundError:
        raise StepError(f"{path} is missing; run `willis report` to make {reports}") from None
    if list(rows["study_id"]) != list(studies.table["study_id"]):
        raise StepError(
            f"{path} has {len(rows)} rows that are not the {len(studies)} studies of "
            f"{studies.arrays.folder}; give the ingest that the reports were written from (--ingest)"
        )
    return [_entry(place, row, studies.study(place)) for place, (_, row) in enumerate(rows.iterrows())]


def _entry(place: int, row: "pd.Series[Any]", study: Study) -> Entry:
    written = row["report"]
    try:
        report = Report.model_validate_json(written) if isinstance(written, str) else None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StepError(
            f"row {place + 1} of reports.parquet is of another version: {first['loc']} {first['msg']}; "
            "run `willis report` again"
        ) from None
    made = checks(report.findings, study.facts, study.acquired()) if report else ()
    reason = str(row["reason"] or "")
    return Entry(place + 1, report, made, grounding_of(made), bool(row["flagged"]), reason, study.facts)


def worst_first(entries: Iterable[Entry]) -> list[Entry]:
    """Order by what deserves a look: flagged ones first, then by score; a missing report before all."""

    def rank(entry: Entry) -> tuple[bool, bool, float, int]:
        score = entry.grounding.score
        return (not entry.flagged, entry.report is not None, 1.0 if score is None else score, entry.number)

    return sorted(entries, key=rank)


def totals_of(entries: Sequence[Entry]) -> Totals:
    """Count a whole run."""
    written = [entry for entry in entries if entry.report]
    scores = [entry.grounding.score for entry in written if entry.grounding.score is not None]
    bars = Counter(NUM_BARS if score == 1 else int(score * NUM_BARS) for score in scores)
    fields: dict[str, Counter[Verdict]] = {name: Counter() for name in Findings.model_fields}
    for entry in written:
        for check in entry.checks:
            fields[check.field][check.verdict] += 1
    return Totals(
        num_studies=len(entries),
        num_reports=len(written),
        num_flagged=sum(entry.flagged for entry in entries),
        first_stood=sum(_attempt(entry) == 1 for entry in entries) / max(1, len(entries)),
        mean_score=sum(scores) / len(scores) if scores else None,
        rates={v: _rate(written, v) for v in get_args(Verdict) if v != "right"},
        fields={name: count for name, count in fields.items() if count},
        bars=tuple(bars[place] for place in range(NUM_BARS + 1)),
        num_unchecked=len(written) - len(scores),
    )


def _attempt(entry: Entry) -> int | None:
    return entry.report.attempt if entry.report else None


def _rate(written: Sequence[Entry], verdict: Verdict) -> Rate:
    counts = [sum(check.verdict == verdict for check in entry.checks) for entry in written]
    return Rate(sum(n > 0 for n in counts) / len(counts) if counts else None, sum(counts))
