"""From one prediction back to the cohort its model was learned from.

prediction -> bundle -> training run -> cohort version (DVC) and code (git)
    |            `---> feature service and event range, report model and prompts of the training table
    `---> feature times and report of this very answer
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from willis.errors import InputError
from willis.models.bundle import Lineage
from willis.settings import Settings

if TYPE_CHECKING:
    from rich.tree import Tree


class _Link(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportOrigin(_Link):
    """Who wrote the report that this prediction read; None where it read none or the caller sent it."""

    writer: str | None
    model: str | None
    prompt_hash: str | None
    grounding_score: float | None


class PredictionOrigin(_Link):
    """What the log holds of one answer's making."""

    prediction_id: str
    created_at: datetime
    probability: float
    modalities_used: tuple[str, ...]
    report: ReportOrigin
    feature_times: Mapping[str, str]


class BundleOrigin(_Link):
    """The bundle that answered; `erasures` counts patients erased from its samples since."""

    version: str
    created_at: datetime
    registry: str
    erasures: int


class LineageChain(_Link):
    """The whole chain, newest link first."""

    prediction: PredictionOrigin
    bundle: BundleOrigin
    training: Lineage


def lineage(prediction_id: str, settings: Settings) -> LineageChain:
    """Follow a prediction back to its cohort.

    Args:
        prediction_id: as the endpoint returned it.
        settings: the prediction log and the bundle registry.

    Raises:
        InputError: the log holds no such prediction, or the registry no longer holds its bundle.
        StoreError: log or registry do not answer.
    """
    from willis.stores.predictions import PredictionLog
    from willis.stores.registry import Registry

    log = PredictionLog(settings.database_url.get_secret_value())
    try:
        found = log.get(prediction_id)
    finally:
        log.close()
    if found is None:
        raise InputError(
            f"the prediction log holds no prediction {prediction_id!r}; it may have been erased or have "
            f"outlived {settings.retention_days} days (WILLIS_DATABASE_URL, WILLIS_RETENTION_DAYS)"
        )
    row = found.row
    bundle = Registry.open(settings).fetch(row.bundle_version)
    report = ReportOrigin(
        writer=row.report_writer,
        model=row.report_model,
        prompt_hash=row.report_prompt_hash,
        grounding_score=row.grounding_score,
    )
    prediction = PredictionOrigin(
        prediction_id=row.prediction_id,
        created_at=row.created_at,
        probability=row.probability,
        modalities_used=row.modalities_used,
        report=report,
        feature_times=dict(row.feature_times),
    )
    origin = BundleOrigin(
        version=bundle.version,
        created_at=bundle.manifest.created_at,
        registry=settings.registry,
        erasures=len({amendment.amended_at for amendment in bundle.manifest.amendments}),
    )
    return LineageChain(prediction=prediction, bundle=origin, training=bundle.manifest.lineage)


def render_lineage(chain: LineageChain) -> "Tree":
    """Draw the chain for people, one branch per link; what a step did not record says so."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(f"[bold]prediction[/] {chain.prediction.prediction_id}")
    for line in _prediction_lines(chain.prediction):
        tree.add(Text(line))
    bundle = tree.add(f"[bold]bundle[/] {chain.bundle.version}")
    bundle.add(Text(f"made {_text(chain.bundle.created_at)}, in {chain.bundle.registry}"))
    if chain.bundle.erasures:
        bundle.add(f"patients erased from its samples since: {chain.bundle.erasures}")
    for heading, lines in _training_branches(chain.training):
        branch = bundle.add(f"[bold]{heading}[/]")
        for line in lines:
            branch.add(Text(line))
    return tree


def _prediction_lines(prediction: PredictionOrigin) -> Iterator[str]:
    yield f"answered {_text(prediction.created_at)}: {prediction.probability:.3f}"
    yield f"modalities used: {', '.join(prediction.modalities_used)}"
    report = prediction.report
    if report.model:
        yield f"report by {report.writer} {report.model}, prompt {report.prompt_hash or 'none'}"
    for view, time in sorted(prediction.feature_times.items()):
        yield f"view {view} as of {time}"


def _training_branches(origin: Lineage) -> Iterator[tuple[str, list[str]]]:
    run = json.loads(origin.training)
    facts = [f"{name} = {value}" for name, value in run.items() if isinstance(value, int | float | str)]
    yield "training run", [f"seed {_text(origin.seed)}, Willis {origin.willis_version or 'unknown'}", *facts]
    dirty = {True: "with uncommitted changes", False: "clean", None: "state not recorded"}[origin.git_dirty]
    yield "code", [f"git {_text(origin.git_revision)}, {dirty}"]
    yield (
        "features",
        [
            f"service {_text(origin.feature_service)}",
            f"events from {_text(origin.features_from)} until {_text(origin.features_until)}",
        ],
    )
    prompts = ", ".join(origin.report_prompt_hashes) or "none"
    yield (
        "reports",
        [f"{_text(origin.report_writer)}, model {_text(origin.report_model)}, prompts {prompts}"],
    )
    yield (
        "cohort",
        [
            f"DVC md5 {_text(origin.cohort_md5)}",
            f"{_text(origin.cohort_num_files)} files, {_text(origin.cohort_size_bytes)} bytes, "
            f"on {_text(origin.cohort_remote)}",
        ],
    )


def _text(value: object) -> str:
    if value is None:
        return "not recorded"
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value)
