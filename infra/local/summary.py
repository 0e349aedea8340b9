"""What the demo found, for machines (summary.json) and on the screen."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from infra.local.cost import Cost
from infra.local.stages import StageRun
from willis.evaluation.results import Evaluation

if TYPE_CHECKING:
    from infra.local.circle import Circle


class Part(BaseModel):
    """A frozen part of the summary; None where the source cannot have it, with the reason in `absent`."""

    model_config = ConfigDict(frozen=True)


class CohortPart(Part):
    """The patients."""

    title: str
    num_patients: int
    dvc_md5: str


class ReportsPart(Part):
    """Who wrote the reports, and how they stand beside what was measured."""

    writer: str
    model: str | None
    num_reports: int
    num_flagged: int
    mean_grounding: float | None


class TrainingPart(Part):
    """The training run."""

    num_workers: int
    epochs: int


class EvaluationPart(Part):
    """The headline on the test split, its interval, its ceiling and the baselines beside it."""

    num_patients: int
    auc: float
    auc_low: float
    auc_high: float
    ceiling: float | None
    baselines: dict[str, float | None]


class BundlePart(Part):
    """What was promoted."""

    version: str
    moved: bool
    reason: str


class ServingPart(Part):
    """Both streams together; `bundle_version` is what the answers name, promoted or not."""

    bundle_version: str
    num_predictions: int
    num_failed: int
    p50_ms: float | None


class WindowPart(Part):
    """One window of the prediction log."""

    drift: bool | None
    reason: str
    share: float | None
    num_predictions: int


class Summary(Part):
    """summary.json."""

    notice: str = "For research only; not for diagnosis. Synthetic lesions unless the title says otherwise."
    cohort: CohortPart
    reports: ReportsPart
    training: TrainingPart
    evaluation: EvaluationPart
    bundle: BundlePart
    serving: ServingPart
    monitoring: dict[str, WindowPart | None]
    steps: dict[str, StageRun]
    absent: dict[str, str]
    cost: Cost
    page: str

    def show(self, console: Console) -> None:
        """Print what a person wants to know first."""
        e = self.evaluation
        table = Table(show_header=False, box=None, title="\nThe circle")
        table.add_row("patients", f"{self.cohort.num_patients}: {self.cohort.title}")
        table.add_row("data version", self.cohort.dvc_md5)
        r = self.reports
        grounding = "" if r.mean_grounding is None else f", grounding {r.mean_grounding:.2f}"
        told = f"{r.num_reports} by {r.model or r.writer}, {r.num_flagged} flagged{grounding}"
        table.add_row("reports", told)
        table.add_row("AUC on test", f"{e.auc:.3f} [{e.auc_low:.3f}, {e.auc_high:.3f}], n = {e.num_patients}")
        ceiling = f"{e.ceiling:.3f} (the true probability, same patients)" if e.ceiling else "unknown"
        table.add_row("ceiling", ceiling)
        for name, auc in e.baselines.items():
            table.add_row(f"  {name}", "not measured" if auc is None else f"{auc:.3f}")
        table.add_row("bundle", f"{self.bundle.version} ({self.bundle.reason})")
        s = self.serving
        table.add_row(
            "served",
            f"{s.num_predictions} predictions by {s.bundle_version}, {s.num_failed} failed, "
            f"p50 {s.p50_ms} ms",
        )
        for name, window in self.monitoring.items():
            drift = "not to be had here" if window is None else f"drift: {window.drift} ({window.reason})"
            table.add_row(f"window {name}", drift)
        for name, reason in self.absent.items():
            table.add_row(f"no {name}", reason)
        c = self.cost
        table.add_row(
            "cost",
            f"{c.seconds:.0f} s, memory {c.peak_memory_mb / 1024:.1f} GiB, disk {c.disk_mb / 1024:.1f} GiB",
        )
        table.add_row("page", self.page)
        console.print(table)
        console.print(
            "\n[dim]For research, not for diagnosis. Next: make serve; willis pipeline why train[/]"
        )


def summarise(circle: "Circle", stages: dict[str, StageRun], page: Path, cost: Cost) -> Summary:
    """Collect the summary from the files that the steps wrote."""
    from willis.steps.promote import Promotion
    from willis.steps.report import ReportSummary
    from willis.steps.train import TrainSummary
    from willis.steps.version import CohortVersion

    out = {name: step.output for name, step in circle.steps.items()}
    version = CohortVersion.model_validate_json((out["version"] / "version.json").read_text())
    reports = ReportSummary.model_validate_json((out["report"] / "report.json").read_text())
    training = TrainSummary.model_validate_json((out["train"] / "train.json").read_text())
    promotion = Promotion.model_validate_json((out["promote"] / "promotion.json").read_text())
    evaluation = read_evaluation(out["evaluate"])
    return Summary(
        cohort=CohortPart(
            title=circle.source.title, num_patients=_num_patients(out["ingest"]), dvc_md5=version.md5
        ),
        reports=ReportsPart.model_validate(reports.model_dump(include=set(ReportsPart.model_fields))),
        training=TrainingPart(num_workers=training.num_workers, epochs=training.epochs),
        evaluation=_evaluation(evaluation),
        bundle=BundlePart(version=promotion.version, moved=promotion.moved, reason=promotion.reason),
        serving=_serving(circle),
        monitoring=_windows(circle),
        steps=stages,
        absent=circle.source.absent | _not_measured(evaluation),
        cost=cost,
        page=str(page),
    )


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation that the step wrote."""
    return Evaluation.model_validate_json((folder / "evaluation.json").read_text())


def _evaluation(found: Evaluation) -> EvaluationPart:
    rivals = {
        rival.name: rival.auc.value if rival.auc else None for rival in (*found.baselines, *found.scores)
    }
    return EvaluationPart(
        num_patients=found.num_patients,
        auc=found.auc,
        auc_low=found.auc_low,
        auc_high=found.auc_high,
        ceiling=found.ceiling.auc.value if found.ceiling else None,
        baselines=rivals,
    )


def _not_measured(found: Evaluation) -> dict[str, str]:
    """A reason for everything that the summary's evaluation has no number for."""
    ceiling = {} if found.ceiling else {"ceiling": found.ceiling_reason}
    rivals = (*found.baselines, *found.scores)
    return ceiling | {rival.name: rival.note for rival in rivals if rival.auc is None}


def _serving(circle: "Circle") -> ServingPart:
    runs = [run for run in circle.streams.values() if run is not None]
    times = [run.p50_ms for run in runs if run.p50_ms is not None]
    return ServingPart(
        bundle_version=", ".join(dict.fromkeys(run.bundle_version for run in runs)),
        num_predictions=sum(run.num_predictions for run in runs),
        num_failed=sum(run.num_failed for run in runs),
        p50_ms=round(sum(times) / len(times), 1) if times else None,
    )


def _windows(circle: "Circle") -> dict[str, WindowPart | None]:
    return {
        name: None
        if window is None
        else WindowPart(
            drift=window.drift, reason=window.reason, share=window.share, num_predictions=window.window_size
        )
        for name, window in circle.windows.items()
    }


def _num_patients(ingest: Path) -> int:
    import pandas as pd

    return int(pd.read_parquet(ingest / "studies.parquet", columns=["patient_id"])["patient_id"].nunique())
