"""The application on the Ray cluster."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    promotion: dsl.Input[dsl.Artifact],
    params: dict,
    ingest: dict,
    report: dict,
    service: dsl.Output[dsl.Artifact],
):
    """Put the Serve config and wait until the promoted version answers."""
    from pathlib import Path

    from willis.params import DeployParams, IngestParams, ReportParams, parse_section
    from willis.settings import settings
    from willis.steps.deploy import deploy as step

    section = parse_section(DeployParams, params, "pipeline: deploy")
    studies = parse_section(IngestParams, ingest, "pipeline: ingest")
    reports = parse_section(ReportParams, report, "pipeline: report")
    summary = step(Path(promotion.path), section, settings(), studies, reports)
    service.metadata.update(summary.model_dump(mode="json"))
