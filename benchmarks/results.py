"""What a benchmark measured, as one JSON file: its rows, the command that made them, and how it was set."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import willis
from infra.local.stages import write_whole


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        task: what was asked.
        model: who answered; `A over B` where the figure is a paired difference.
        subset: what the model was shown.
        metric: `auc`, `r`, ...; a paired difference ends in `_lead`.
        mean: the figure, or None where there is none.
        low, high: its 95 % interval, or None where there is none.
        num_patients: how many it was measured on.
        seconds: what the benchmark says it took, or None.
        reason: why there is no figure.
        others: further numbers that the benchmark has of this row.
    """

    task: str
    model: str
    subset: str
    metric: str
    mean: float | None
    num_patients: int
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    reason: str = ""
    others: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Read one row as a benchmark wrote it; what is neither a known field nor a number is left out."""
        own = {item.name for item in fields(cls)} - {"others"}
        known = {name: value for name, value in given.items() if name in own}
        others = {name: value for name, value in given.items() if name not in own and _is_number(value)}
        return cls(**known, others=others)

    @property
    def is_lead(self) -> bool:
        """It is a paired difference of two models."""
        return self.metric.endswith("_lead")

    @property
    def has_interval(self) -> bool:
        """It can be drawn with an interval."""
        return None not in (self.mean, self.low, self.high)


@dataclass(frozen=True)
class Results:
    """One file. Command, version and settings are empty in files from before they were recorded."""

    rows: tuple[Row, ...]
    command: str = ""
    version: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of `write_results`, or a bare list of rows."""
        content = json.loads(path.read_text())
        given = content if isinstance(content, dict) else {"rows": content}
        return cls(**given | {"rows": tuple(Row.of(row) for row in given["rows"])})


def write_results(
    path: Path, rows: Sequence[Mapping[str, object]], arguments: argparse.Namespace | None = None
) -> None:
    """Write the rows of the benchmark that this process runs, whole or not at all.

    Args:
        path: NAME.json; below docs/results/ it goes into the page of results (benchmarks/page.py).
        rows: with the fields of `Row`, `others` being further keys of each.
        arguments: the benchmark's own, defaults among them.
    """
    content = {
        "command": _command(),
        "version": willis.__version__,
        "settings": _settings(vars(arguments) if arguments else {}),
        "rows": list(rows),
    }
    write_whole(path, json.dumps(content, indent=2) + "\n")


def figure_rows(
    task: str, model: str, figures: Mapping[str, float], num_patients: int
) -> list[dict[str, object]]:
    """Figures that have no interval as rows, each a metric of its own."""
    common = {"task": task, "model": model, "subset": "", "num_patients": num_patients}
    return [common | {"metric": name, "mean": float(value)} for name, value in figures.items()]


def mean_and_interval(row: Mapping[str, Any]) -> tuple[str, str]:
    """The two cells of a row in a table on the screen; the reason where there is no figure."""
    if row["mean"] is None:
        return "-", str(row.get("reason", "-"))
    interval = f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else "-"
    return f"{row['mean']:.3f}", interval


def _command() -> str:
    """The command line as it was typed, whichever Python it named."""
    after = sys.orig_argv[sys.orig_argv.index("-m") :] if "-m" in sys.orig_argv else sys.argv
    return shlex.join(["python", *after])


def _settings(given: Mapping[str, object]) -> dict[str, object]:
    """Leave out paths, which say where and not how."""
    return {name: value for name, value in given.items() if value is not None and not isinstance(value, Path)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
