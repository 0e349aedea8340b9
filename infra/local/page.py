"""One self-contained page of the demo: pictures first, numbers beside their controls."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local import page_tables as tables
from infra.local.summary import read_evaluation
from willis.evaluation.results import Evaluation

if TYPE_CHECKING:
    import pandas as pd

    from infra.local.circle import Circle
    from willis.lineage import LineageChain

TEMPLATE = Path(__file__).with_name("page.html.j2")
NUM_PATIENTS = 3
PICTURES = ("roc.png", "reliability.png", "decision.png", "attribution.png")


@dataclass(frozen=True)
class Picture:
    """A picture that the page carries, and what it shows in words."""

    data: str
    text: str


@dataclass(frozen=True)
class Share:
    """What one modality added to a patient's probability; None where it was absent."""

    modality: str
    value: float | None
    width: float
    """Percent of half the bar; the largest share on the page fills it."""


@dataclass(frozen=True)
class PatientView:
    """One patient on the page."""

    title: str
    picture: Picture
    report: str
    probability: float
    outcome: str
    poor: bool | None
    shares: tuple[Share, ...]


def write_page(circle: "Circle", path: Path) -> Path:
    """Write the page, whole or not at all.

    Returns:
        Where it is.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    from infra.local.stages import write_whole

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(bar=tables.bar, signed=tables.signed)
    folder = circle.steps["evaluate"].output
    evaluation, chain = read_evaluation(folder), _lineage(circle)
    html = environment.get_template(TEMPLATE.name).render(
        circle=circle,
        synthetic="ceiling" not in circle.source.absent,
        evaluation=evaluation,
        poor_outcome=outcome_name(evaluation),
        strongest=tables.strongest_rival(evaluation),
        better=tables.better_rivals(evaluation),
        rivals=tables.rival_table(evaluation),
        pictures=[_picture(folder / name) for name in PICTURES if (folder / name).is_file()],
        patients=patient_views(circle),
        windows=circle.windows,
        drift=tables.drift_table(circle.windows),
        links=_links(chain),
        lineage=json.dumps(chain.model_dump(mode="json"), indent=2) if chain else "",
        slowest=max(step.seconds for step in circle.steps.values()),
        card=_card((folder / "model_card.md").read_text()),
    )
    write_whole(path, html)
    return path


def outcome_name(evaluation: Evaluation) -> str:
    """What a poor outcome is, in words that claim no more than the source knows."""
    if evaluation.outcome == "mrs_90d":
        return "mRS 3-6 at 90 days"
    if evaluation.source == "soop":
        return "Rankin score 3-6 (registry, read as the one at discharge)"
    return "mRS 3-6 as the source gives it, not known to be at 90 days"


def patient_views(circle: "Circle") -> list[PatientView]:
    """The patients whose saliency the evaluation drew, with report and prediction."""
    import pandas as pd

    folder = circle.steps["evaluate"].output
    evaluation = read_evaluation(folder)
    reports = pd.read_parquet(circle.steps["report"].output / "reports.parquet").set_index("patient_id")
    predictions = pd.read_parquet(folder / "predictions.parquet").set_index("patient_id")
    names = evaluation.saliency[:NUM_PATIENTS]
    shares = (
        predictions.loc[[_patient_of(predictions, name) for name in names]].filter(like="attribution_").abs()
    )
    widest = max(float(shares.max(axis=None)), 1e-9) if len(shares) else 1.0
    score = "Rankin score" if evaluation.source == "soop" else "mRS"
    views = []
    for name in names:
        patient = _patient_of(predictions, name)
        row = predictions.loc[patient]
        score_known, poor_known = not pd.isna(row["mrs"]), not pd.isna(row["poor_outcome"])
        views.append(
            PatientView(
                title=patient,
                picture=_picture(folder / name),
                report=str(reports.loc[patient, "text"]) if patient in reports.index else "no report",
                probability=float(row["p"]),
                outcome=f"{score} {int(row['mrs'])}" if score_known else "unknown",
                poor=bool(row["poor_outcome"]) if poor_known else None,
                shares=tuple(
                    _share(m, float(row[f"attribution_{m}"]), widest) for m in ("image", "text", "table")
                ),
            )
        )
    return views


def _share(modality: str, value: float, widest: float) -> Share:
    if value != value:
        return Share(modality, None, 0.0)
    return Share(modality, value, round(100 * abs(value) / widest, 1))


def _patient_of(predictions: "pd.DataFrame", picture: str) -> str:
    return str(predictions.index[predictions["picture"] == picture][0])


def _lineage(circle: "Circle") -> "LineageChain | None":
    from willis.lineage import lineage
    from willis.settings import settings

    first = next((run.first_prediction_id for run in circle.streams.values() if run), None)
    return lineage(first, settings()) if first else None


def _links(chain: "LineageChain | None") -> list[tables.Link]:
    from willis.lineage import render_lineage

    return list(tables.links(render_lineage(chain))) if chain else []


def _card(markdown: str) -> str:
    """The model card as HTML; HTML inside it stays text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))


def _picture(path: Path) -> Picture:
    """Read a picture with the description that was written into it."""
    from PIL import Image

    with Image.open(path) as image:
        text = str(image.info.get("Description", path.stem.replace("-", " ")))
    return Picture("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), text)
