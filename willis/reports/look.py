"""One page to look at: each study's pictures beside its report, and how the report stands against the facts.

The page names no patient: study 17 is row 17 of studies.parquet and reports.parquet.
"""

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from willis.errors import ReportError
from willis.reports.entries import Entry, Totals, read_entries, totals_of, worst_first
from willis.reports.grounding import WRONG, Check, Verdict
from willis.reports.slices import PICTURE_PX, Picture, pictures
from willis.reports.studies import IngestedStudies
from willis.reports.writer import Study

TEMPLATE = "look.html.j2"
NUM_LEVELS = 5
UNMEASURED = "not measured"
PROSE = ("findings", "impression")


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
