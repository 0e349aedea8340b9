"""Summaries of steps as tables that people read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from willis.casework import CasePrediction

MAX_ITEMS = 8


def show(summary: BaseModel, as_json: bool) -> None:
    """Print one summary, for people or for machines."""
    if as_json:
        print(summary.model_dump_json(indent=2))
    else:
        Console().print(as_table(summary))


def as_table(summary: BaseModel) -> Table:
    """Lay out one summary: a row per field, long lists cut with their count."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in summary.model_dump(mode="json").items():
        table.add_row(f"[bold]{name}[/]", _cell(value))
    return table


def predictions_table(predictions: Sequence["CasePrediction"]) -> Table:
    """One row per prediction; the notice stands above the numbers."""
    table = Table(title="P(mRS 3-6). For research, not for diagnosis.")
    for heading in ("case", "probability", "set", "modalities used"):
        table.add_column(heading)
    for p in predictions:
        table.add_row(
            p.case_id, f"{p.probability:.3f}", "/".join(p.prediction_set), ", ".join(p.modalities_used)
        )
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_cell(item)}" for key, item in list(value.items())[:MAX_ITEMS])
    if isinstance(value, list):
        shown = "\n".join(_cell(item) for item in value[:MAX_ITEMS])
        return shown + (f"\n... {len(value)} in all" if len(value) > MAX_ITEMS else "")
    return str(value)
