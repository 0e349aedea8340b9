"""One page to look at: each study's pictures beside its report, and how the report stands against the facts.

The page names no patient: study 17 is row 17 of studies.parquet and reports.parquet.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from willis.errors import ReportError, StepError
from willis.imaging.lesion import Facts
from willis.reports.grounding import WRONG, Check, Grounding, Verdict, checks, grounding_of
from willis.reports.schema import Findings, Report
from willis.reports.slices import PICTURE_PX, Picture, pictures
from willis.reports.studies import IngestedStudies
from willis.reports.writer import Study

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "look.html.j2"
NUM_LEVELS = 5
UNMEASURED = "not measured"
PROSE = ("findings", "impression")
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
class Line:
    """One line of a report's table; the verdict is a word of `Verdict` or `UNMEASURED`."""

    field: str
    stated: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Strip:
    """One picture in a page.

    Attributes:
        place: where it lies, in words.
        panels: what its panels show, from left to right.
        sides: what lies at the left and right edge of every panel.
        data: the picture as a data URI.
    """

    place: str
    panels: tuple[str, ...]
    sides: tuple[str, str]
    data: str


@dataclass(frozen=True)
class Card:
    """What the page shows of one study; `nothing` says why it has no picture."""

    entry: Entry
    lines: tuple[Line, ...]
    silent: tuple[str, ...]
    strips: tuple[Strip, ...]
    nothing: str


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


def look(ingest: Path, reports: Path, out: Path, *, num_studies: int = 60) -> Path:
    """Write the page, whole or not at all.

    Args:
        ingest: output of `ingest`.
        reports: output of `report` for it.
        out: the page.
        num_studies: how many studies it shows: flagged ones first, then those with the lowest score.

    Returns:
        `out`.

    Raises:
        StepError: a folder is not a finished output, or the two are not of the same studies.
    """
    from rich.console import Console
    from rich.progress import track

    studies = IngestedStudies.open(ingest)
    entries = read_entries(studies, reports)
    shown = worst_first(entries)[:num_studies]
    bar = track(shown, "drawing studies", console=Console(stderr=True), transient=True)
    cards = [card_of(entry, studies.study(entry.number - 1)) for entry in bar]
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.unfinished")
    unfinished.write_text(render(cards, totals_of(entries)))
    unfinished.replace(out)
    return out


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


def card_of(entry: Entry, study: Study) -> Card:
    """Draw one study and lay out its report."""
    lines, silent = report_lines(entry)
    try:
        drawn = pictures(
            study,
            layout="panels",
            num_slices=NUM_LEVELS,
            panel_px=PICTURE_PX,
            through_lesion=bool(entry.facts.infarct_present),
        )
    except ReportError as error:
        return Card(entry, lines, silent, (), str(error))
    return Card(entry, lines, silent, tuple(_strip(picture) for picture in drawn), "")


def report_lines(entry: Entry) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """Lay out a report field by field.

    Returns:
        A line per comparison and per stated fact that nothing was measured for; and the fields left out.
    """
    if entry.report is None:
        return (), ()
    lines: list[Line] = []
    silent: list[str] = []
    for name, value in entry.report.findings:
        made = [check for check in entry.checks if check.field == name]
        lines += [Line(name, c.stated, c.measured or c.message, c.verdict) for c in made]
        if name in PROSE:
            continue
        unmeasured = _unmeasured(value, made)
        if unmeasured:
            lines.append(Line(name, unmeasured, "", UNMEASURED))
        elif not made:
            silent.append(name)
    return tuple(lines), tuple(silent)


def _unmeasured(value: object, made: Sequence[Check]) -> str:
    """What a field states beyond its comparisons; regions are compared one by one."""
    compared = {check.stated for check in made}
    if isinstance(value, tuple):
        if ", ".join(value) in compared or (not value and made):
            return ""
        left = [word for word in value if word not in {*compared, "unknown"}]
        return ", ".join(left) if value else "none"
    return "" if made or value in (None, "unknown") else str(value)


def _strip(picture: Picture) -> Strip:
    from PIL import Image

    place, _, names = picture.label.rpartition(", ")
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels[..., 0]).save(buffer, "PNG", optimize=True)
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Strip(place, tuple(names.split(" | ")), picture.sides, data)


def render(cards: Sequence[Card], totals: Totals) -> str:
    """Return the page; whatever a report says stays text."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("willis.reports", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(digest=_digest, words=lambda name: str(name).replace("_", " "))
    return environment.get_template(TEMPLATE).render(
        cards=cards,
        totals=totals,
        wrong=WRONG,
        verdicts=get_args(Verdict),
        writers=list(_writers(cards)),
        levels=NUM_LEVELS,
    )


def _digest(script: str) -> str:
    """Name a script as a content security policy wants it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _writers(cards: Sequence[Card]) -> Iterator[str]:
    """Who wrote the reports on the page, each once."""
    reports = [card.entry.report for card in cards if card.entry.report]
    yield from dict.fromkeys(f"{r.writer}, {r.model}, prompt {r.prompt_hash}" for r in reports)
