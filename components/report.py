"""One grounded report per study."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(studies: dsl.Input[dsl.Dataset], params: dict, code: str, reports: dsl.Output[dsl.Dataset]):
    """Write the reports and hold each against what was measured."""
    from pathlib import Path

    from willis.params import ReportParams, parse_section
    from willis.settings import settings
    from willis.steps.report import report as step

    section = parse_section(ReportParams, params, "pipeline: report")
    summary = step(Path(studies.path), Path(reports.path), section, settings())
    reports.metadata.update(summary.model_dump(mode="json"))
