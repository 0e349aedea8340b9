"""The tables of the demo's page: rivals, drift and lineage, arranged for a person who compares."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from willis.evaluation.results import Evaluation, Interval, Rival, by_falling_auc, strongest
from willis.monitoring.results import ColumnDrift, MonitorSummary

if TYPE_CHECKING:
    from rich.tree import Tree

NUM_DRIFT_ROWS = 12
"""Quiet columns that are shown unfolded; every column that rings is."""


@dataclass(frozen=True)
class Bar:
    """An interval on the shared axis of the rivals, in percent of its length."""

    left: float
    width: float
    point: float


@dataclass(frozen=True)
class RivalRow:
    """One predictor; `lead` is Willis's, and `verdict` says whether its interval excludes zero."""

    name: str
    mark: Literal["", "headline", "ceiling", "strongest"]
    auc: Interval | None
    lead: Interval | None
    bar: Bar | None
    note: str

    @property
    def verdict(self) -> str:
        """Is Willis ahead of or behind this predictor beyond chance?"""
        if self.lead is None or not self.lead.excludes(0):
            return ""
        return "ahead" if self.lead.value > 0 else "behind"


@dataclass(frozen=True)
class RivalGroup:
    """Rows under one heading."""

    title: str
    rows: tuple[RivalRow, ...]


@dataclass(frozen=True)
class RivalTable:
    """Willis and its ceiling first, then everybody else; the axis is shared."""

    low: float
    high: float
    willis: float
    groups: tuple[RivalGroup, ...]


@dataclass(frozen=True)
class DriftRow:
    """One column in every window that was looked at; the bar's length is statistic over threshold."""

    name: str
    group: str
    cells: dict[str, ColumnDrift | None]

    @property
    def rings(self) -> bool:
        """Does it ring in any window?"""
        return any(cell is not None and bool(cell.rings) for cell in self.cells.values())

    @property
    def compared(self) -> bool:
        """Could it be compared in any window?"""
        return any(cell is not None and cell.rings is not None for cell in self.cells.values())


@dataclass(frozen=True)
class DriftTable:
    """The columns that a reader looks at, those folded away, and those that could not be compared."""

    windows: tuple[str, ...]
    shown: tuple[DriftRow, ...]
    folded: tuple[DriftRow, ...]
    not_compared: dict[str, tuple[str, ...]]
    """Reason -> names."""


@dataclass(frozen=True)
class Link:
    """One link of a prediction's lineage."""

    heading: str
    lines: tuple[str, ...]


def strongest_rival(evaluation: Evaluation) -> Rival | None:
    """The baseline or score with the largest AUC."""
    return strongest((*evaluation.baselines, *evaluation.scores))


def better_rivals(evaluation: Evaluation) -> list[Rival]:
    """Baselines and scores over which Willis's lead lies below zero with its whole interval."""
    return [r for r in (*evaluation.baselines, *evaluation.scores) if r.lead and r.lead.high < 0]


def rival_table(evaluation: Evaluation) -> RivalTable:
    """Every predictor on one axis; baselines and scores by falling AUC, controls in their own order."""
    e = evaluation
    everybody = (*e.baselines, *e.scores, *e.controls)
    headline = Interval(value=e.auc, low=e.auc_low, high=e.auc_high)
    found = [headline, *(r.auc for r in everybody if r.auc), *([e.ceiling.auc] if e.ceiling else [])]
    low = int(min(0.5, *(interval.low for interval in found)) * 10) / 10
    best = strongest_rival(e)

    def row(rival: Rival) -> RivalRow:
        mark: Literal["", "strongest"] = "strongest" if rival is best else ""
        return RivalRow(rival.name, mark, rival.auc, rival.lead, _place(rival.auc, low), rival.note)

    first = [RivalRow("Willis, all modalities", "headline", headline, None, _place(headline, low), "")]
    if e.ceiling is not None:
        area, lead = e.ceiling.auc, e.ceiling.lead_over_truth
        first.append(RivalRow("true probability (ceiling)", "ceiling", area, lead, _place(area, low), ""))
    groups = (
        RivalGroup("", tuple(first)),
        RivalGroup("Baselines", tuple(map(row, by_falling_auc(e.baselines)))),
        RivalGroup("Bedside scores", tuple(map(row, by_falling_auc(e.scores)))),
        RivalGroup("Controls: Willis with less to go on", tuple(map(row, e.controls))),
    )
    middle = _place(headline, low)
    assert middle is not None  # there is a headline
    return RivalTable(low, 1.0, middle.point, tuple(group for group in groups if group.rows))


def drift_table(windows: dict[str, MonitorSummary | None]) -> DriftTable:
    """Every column of every window: those that ring, the nearest to their threshold, and the rest."""
    rows = drift_rows(windows)
    compared = [row for row in rows if row.compared]
    num_shown = max(NUM_DRIFT_ROWS, sum(row.rings for row in compared))
    absent: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if not row.compared:
            reason = next((cell.reason for cell in row.cells.values() if cell is not None), "")
            absent[reason] = (*absent.get(reason, ()), row.name)
    seen = tuple(name for name, window in windows.items() if window is not None)
    return DriftTable(seen, tuple(compared[:num_shown]), tuple(compared[num_shown:]), absent)


def drift_rows(windows: dict[str, MonitorSummary | None]) -> list[DriftRow]:
    """Every column of every window that was looked at, those that ring furthest first."""
    seen = {name: window for name, window in windows.items() if window is not None}
    columns = {column.name: column.group for window in seen.values() for column in window.columns}
    rows = [
        DriftRow(
            name,
            group,
            {key: next((c for c in window.columns if c.name == name), None) for key, window in seen.items()},
        )
        for name, group in columns.items()
    ]
    return sorted(rows, key=lambda row: (not row.rings, -max(bar(cell) for cell in row.cells.values())))


def links(tree: "Tree") -> Iterator[Link]:
    """Every branch of a drawn lineage with its leaves, from the prediction to the cohort."""
    from rich.text import Text

    def text(node: "Tree") -> str:
        label = node.label if isinstance(node.label, Text) else Text.from_markup(str(node.label))
        return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", label.plain)

    yield Link(text(tree), tuple(text(child) for child in tree.children if not child.children))
    for child in tree.children:
        if child.children:
            yield from links(child)


def bar(cell: ColumnDrift | None) -> float:
    """Statistic over threshold, at most 3."""
    if cell is None or cell.statistic is None or not cell.threshold:
        return 0.0
    return min(cell.statistic / cell.threshold, 3.0)


def signed(number: float) -> str:
    """Three decimals with a sign that is as wide as a plus; zero has none."""
    shown = f"{number:+.3f}"
    return "0.000" if shown in ("+0.000", "-0.000") else shown.replace("-", "−")


def _place(interval: Interval | None, low: float) -> Bar | None:
    if interval is None:
        return None
    left, right, point = (
        min(max((number - low) / (1 - low), 0.0), 1.0) * 100
        for number in (interval.low, interval.high, interval.value)
    )
    return Bar(round(left, 2), round(right - left, 2), round(point, 2))
