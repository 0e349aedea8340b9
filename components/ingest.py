"""Studies on one grid, facts, splits and shards."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    cohort: str, data: dsl.Input[dsl.Dataset], params: dict, code: str, studies: dsl.Output[dsl.Dataset]
):
    """Check, register, measure, split and pack; `data` ties the step to the cohort's version."""
    from pathlib import Path

    from willis.params import IngestParams, parse_section
    from willis.steps.ingest import ingest as step

    section = parse_section(IngestParams, params, "pipeline: ingest")
    studies.metadata.update(step(Path(cohort), Path(studies.path), section).model_dump(mode="json"))
