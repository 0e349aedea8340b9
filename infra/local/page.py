"""One self-contained page of the demo: pictures first, numbers beside their controls."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local.summary import read_evaluation
from willis.monitoring.results import ColumnDrift, MonitorSummary

if TYPE_CHECKING:
    import pandas as pd

    from infra.local.circle import Circle

TEMPLATE = Path(__file__).with_name("page.html.j2")
NUM_PATIENTS = 3
PICTURES = ("roc.png", "reliability.png", "decision.png", "attribution.png")


@dataclass(frozen=True)
class PatientView:
    """One patient on the page."""

    title: str
    picture: str
    report: str
    probability: float
    outcome: str
    attribution: dict[str, float]


@dataclass(frozen=True)
class DriftRow:
    """One column in every window that was looked at; the bar's length is statistic over threshold."""

    name: str
    group: str
    cells: dict[str, ColumnDrift | None]


def write_page(circle: "Circle", path: Path) -> Path:
    """Write the page, whole or not at all.

    Returns:
        Where it is.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    from infra.local.stages import write_whole

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=select_autoescape(default=True)
    )
    environment.filters["bar"] = _bar
    folder = circle.steps["evaluate"].output
    html = environment.get_template(TEMPLATE.name).render(
        circle=circle,
        evaluation=read_evaluation(folder),
        pictures={
            name.removesuffix(".png"): _embed(folder / name) for name in PICTURES if (folder / name).is_file()
        },
        patients=patient_views(circle),
        windows=circle.windows,
        drift=drift_rows(circle.windows),
        lineage=_lineage(circle),
        card=(folder / "model_card.md").read_text(),
    )
    write_whole(path, html)
    return path


def drift_rows(windows: dict[str, MonitorSummary | None]) -> list[DriftRow]:
    """Every column of every window, those that ring furthest first."""
    seen = [window for window in windows.values() if window is not None]
    columns = {column.name: column.group for window in seen for column in window.columns}
    rows = [
        DriftRow(
            name,
            group,
            {
                key: next((c for c in window.columns if c.name == name), None) if window else None
                for key, window in windows.items()
            },
        )
        for name, group in columns.items()
    ]
    return sorted(rows, key=lambda row: -max(_bar(cell) for cell in row.cells.values()))


def patient_views(circle: "Circle") -> list[PatientView]:
    """The patients whose saliency the evaluation drew, with report and prediction."""
    import pandas as pd

    folder = circle.steps["evaluate"].output
    reports = pd.read_parquet(circle.steps["report"].output / "reports.parquet").set_index("patient_id")
    predictions = pd.read_parquet(folder / "predictions.parquet").set_index("patient_id")
    views = []
    for name in read_evaluation(folder).saliency[:NUM_PATIENTS]:
        patient = _patient_of(predictions, name)
        row = predictions.loc[patient]
        views.append(
            PatientView(
                title=patient,
                picture=_embed(folder / name),
                report=str(reports.loc[patient, "text"]) if patient in reports.index else "no report",
                probability=float(row["p"]),
                outcome="unknown" if pd.isna(row["mrs"]) else f"mRS {int(row['mrs'])}",
                attribution={m: float(row[f"attribution_{m}"]) for m in ("image", "text", "table")},
            )
        )
    return views


def _patient_of(predictions: "pd.DataFrame", picture: str) -> str:
    return str(predictions.index[predictions["picture"] == picture][0])


def _lineage(circle: "Circle") -> str:
    from willis.lineage import lineage
    from willis.settings import settings

    first = next((run.first_prediction_id for run in circle.streams.values() if run), None)
    return (
        json.dumps(lineage(first, settings()).model_dump(mode="json"), indent=2) if first else "no prediction"
    )


def _bar(cell: ColumnDrift | None) -> float:
    if cell is None or cell.statistic is None or not cell.threshold:
        return 0.0
    return min(cell.statistic / cell.threshold, 3.0)


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
