"""The cohort as DVC knows it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def version(cohort: str, cohort_digest: str, params: dict, code: str, data: dsl.Output[dsl.Dataset]):
    """Add the cohort to DVC, push it, prove the push; `cohort_digest` and `code` are for the cache alone."""
    from pathlib import Path

    from willis.params import VersionParams, parse_section
    from willis.settings import settings
    from willis.steps.version import version as step

    section = parse_section(VersionParams, params, "pipeline: version")
    data.metadata.update(step(Path(cohort), Path(data.path), section, settings()).model_dump(mode="json"))
