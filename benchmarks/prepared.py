"""From a cohort to arrays and a training table, once for the same cohort, parameters and code."""

from collections.abc import Callable
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
    arrays = ingested(cohort, params, out / "arrays")
    return arrays, featurized(arrays, params, out / "table")


def ingested(cohort: Path, params: Params, out: Path) -> Path:
    """Run ingest below `out` and return its folder."""
    key = key_of(cohort_digest(cohort), params.ingest.model_dump(), code_digest("ingest"))

    def make() -> None:
        out.mkdir(parents=True)
        ingest(cohort, out / "ingest", params.ingest)

    folder_made(out, key, make)
    return out / "ingest"


def featurized(
    arrays: Path, params: Params, out: Path, before_reports: Callable[[], None] = lambda: None
) -> Path:
    """Run report and featurize below `out` and return the latter's folder.

    Args:
        arrays: output folder of ingest.
        params: the sections `report` and `featurize`.
        out: folder of the two steps and their stores.
        before_reports: called when reports have to be written, to start a server.
    """
    steps = ("report", "featurize")
    sections = [getattr(params, step).model_dump() for step in steps]
    code = [code_digest(step, params.report.model) for step in steps]
    key = key_of((arrays / "ingest.json").read_text(), *sections, *code)

    def make() -> None:
        out.mkdir(parents=True)
        before_reports()
        own = {"feast_dir": out / "feast", "report_store": out / "reports.sqlite"}
        where = settings().model_copy(update=own)
        report(arrays, out / "reports", params.report, where)
        featurize(arrays, out / "reports", out / "features", params.featurize, where)

    folder_made(out, key, make)
    return out / "features"
