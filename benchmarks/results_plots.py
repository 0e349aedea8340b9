"""The pictures of the page of results: intervals of a table's rows, or curves along the number of labels.

A picture is a function of its file alone, byte for byte, and names it by its SHA-256.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.results import Row
from willis.evaluation.plots import INK, MODEL, QUIET, RIVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = re.compile(r"_(\d+)_labels$")
_WIDTH, _ROW, _PANEL = 7.2, 0.27, 0.75
"""Inches: of a picture, of a row of a forest plot, of what its panel needs beside rows."""


def draw(source: Path, rows: Sequence[Row]) -> Path | None:
    """Draw what a file of results holds beside it, NAME.svg, unless no row has an interval."""
    drawn = [row for row in rows if row.has_interval]
    if not drawn:
        return None
    numbers = {labels_of(row) for row in drawn}
    figure = _curves(drawn) if len(numbers) > 1 and None not in numbers else _forest(drawn)
    return _save(figure, source)


def digest_of(source: Path) -> str:
    """What a picture says of the file that it was drawn from."""
    return f"sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}"


def labels_of(row: Row) -> int | None:
    """The number of labelled patients that a task's name ends in."""
    found = LABELS.search(row.task)
    return int(found[1]) if found else None


def _forest(rows: Sequence[Row]) -> "Figure":
    """Every row a mean and its interval; leads have a panel of their own with a line at 0."""
    panels = list(_panels(rows))
    heights = [_ROW * len(panel) + _PANEL for panel in panels]
    figure = _figure(_WIDTH, sum(heights))
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        _draw_intervals(axes, panel)
    return figure


def _panels(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one metric, where it has several; all others together, leads apart."""
    count = Counter(row.metric for row in rows)
    keys = [row.metric if count[row.metric] > 1 else ("lead" if row.is_lead else "") for row in rows]
    for key in dict.fromkeys(keys):
        yield [row for row, own in zip(rows, keys, strict=True) if own == key]


def _draw_intervals(axes: "Axes", rows: Sequence[Row]) -> None:
    heights, colours = range(len(rows)), [_colour(row) for row in rows]
    low, mean, high = _values(rows)
    axes.hlines(heights, low, high, colors=colours, linewidth=1.6)
    axes.scatter(mean, heights, c=colours, s=24, zorder=3)
    if rows[0].is_lead:
        axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set_yticks(heights, _names(rows), fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    models = {row.model for row in rows}
    axes.set_xlabel(_metrics(rows) + (f": {models.pop()}" if len(models) == 1 else ""), fontsize=9)


def _colour(row: Row) -> str:
    """Willis and what a lead shows are blue; other models are dark, a lead that holds 0 is grey."""
    assert row.low is not None and row.high is not None, "it has an interval"
    if row.is_lead:
        return QUIET if row.low <= 0 <= row.high else MODEL
    return MODEL if row.model.startswith("willis") else INK


def _names(rows: Sequence[Row]) -> list[str]:
    """Whatever of model, task, subset and metric differs between these rows."""
    parts = [(row.model, row.task, row.subset, row.metric) for row in rows]
    told = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return [
        ", ".join(word.replace("_", " ") for word, tell in zip(part, told, strict=True) if tell and word)
        or part[0]
        for part in parts
    ]


def _curves(rows: Sequence[Row]) -> "Figure":
    """Figures above and leads below, over the number of labels; one column per subset."""
    subsets = list(dict.fromkeys(row.subset for row in rows))
    kinds = [kind for kind in (False, True) if any(row.is_lead is kind for row in rows)]
    figure = _figure(max(_WIDTH, 3.6 * len(subsets)), 3.0 * len(kinds) + 0.5)
    grid = figure.subplots(len(kinds), len(subsets), squeeze=False, sharex=True, sharey="row")
    styles = _styles(rows)
    for line, kind in zip(grid, kinds, strict=True):
        line[0].set_ylabel(_metrics([row for row in rows if row.is_lead is kind]), fontsize=9)
        for axes, subset in zip(line, subsets, strict=True):
            _draw_lines(axes, [row for row in rows if row.is_lead is kind and row.subset == subset], styles)
    for axes, subset in zip(grid[0], subsets, strict=True):
        axes.set_title(subset.replace("_", " "), fontsize=9.5, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("labelled patients", fontsize=9)
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    shown = [name for name in lines if not name.startswith("_")]
    figure.legend(
        [lines[name] for name in shown],
        shown,
        loc="outside lower center",
        ncols=3,
        fontsize=8.5,
        frameon=False,
    )
    return figure


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each model; a lead has the colour of who leads, and dots."""
    colours = [MODEL, *(colour for colour, _ in RIVALS)]
    names = list(dict.fromkeys(row.model.partition(" over ")[0] for row in rows))
    colour = {name: colours[number % len(colours)] for number, name in enumerate(names)}
    return {
        row.model: (colour[row.model.partition(" over ")[0]], ":" if row.is_lead else "-") for row in rows
    }


def _draw_lines(axes: "Axes", rows: Sequence[Row], styles: Mapping[str, tuple[str, Any]]) -> None:
    """A line per model, its intervals as bars, set a little apart so that they can be told."""
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        own = sorted((row for row in rows if row.model == model), key=lambda row: labels_of(row) or 0)
        colour, dashes = styles[model]
        where = [(labels_of(row) or 0) * 1.04**number for row in own]
        low, mean, high = _values(own)
        axes.plot(where, mean, marker="o", markersize=4, color=colour, linestyle=dashes, label=model)
        axes.vlines(where, low, high, color=colour, linewidth=1)
    if any(row.is_lead for row in rows):
        axes.axhline(0, color=QUIET, linewidth=0.8, linestyle=":")
    numbers = sorted({labels_of(row) or 0 for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()


def _values(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """(3, n): low, mean and high of each row."""
    return np.array([(row.low, row.mean, row.high) for row in rows], np.float64).T


def _metrics(rows: Sequence[Row]) -> str:
    """What an axis shows: the metric, or `share` where there are several."""
    names = {row.metric for row in rows}
    return names.pop().replace("_", " ").replace("auc", "AUC") if len(names) == 1 else "share"


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", source: Path) -> Path:
    """Write the picture without date or version; text stays text, so that it can be read and searched."""
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8.5)
    path = source.with_suffix(".svg")
    metadata = {"Date": None, "Creator": None, "Description": digest_of(source)}
    with rc_context({"svg.hashsalt": "willis", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(path, metadata=metadata)
    return path
