"""From a cohort to arrays and a training table, once for the same cohort, parameters and code."""

from pathlib import Path

from infra.local.stages import folder_made, key_of
from willis.params import Params
from willis.provenance import code_digest, cohort_digest
from willis.settings import settings
from willis.steps.featurize import featurize
from willis.steps.ingest import ingest
from willis.steps.report import report


def prepared(cohort: Path, params: Params, out: Path) -> tuple[Path, Path]:
    """Run ingest, report and featurize, with a feature store and a report store of the benchmark's own.

    Returns:
        The folders of ingest and of featurize.
    """
    steps = ("ingest", "report", "featurize")
    sections = [getattr(params, step).model_dump() for step in steps]
    key = key_of(cohort_digest(cohort), *sections, *(code_digest(step) for step in steps))
    folder_made(out, key, lambda: _prepare(cohort, params, out))
    return out / "ingest", out / "features"


def _prepare(cohort: Path, params: Params, out: Path) -> None:
    own = {"feast_dir": out / "feast", "report_store": out / "reports.sqlite"}
    where = settings().model_copy(update=own)
    out.mkdir(parents=True)
    ingest(cohort, out / "ingest", params.ingest)
    report(out / "ingest", out / "reports", params.report, where)
    featurize(out / "ingest", out / "reports", out / "features", params.featurize, where)
