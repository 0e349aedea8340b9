"""The feature store and the training table."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def featurize(
    studies: dsl.Input[dsl.Dataset],
    reports: dsl.Input[dsl.Dataset],
    params: dict,
    code: str,
    features: dsl.Output[dsl.Dataset],
):
    """Fill Feast and join the training table, point in time."""
    from pathlib import Path

    from willis.params import FeaturizeParams, parse_section
    from willis.settings import settings
    from willis.steps.featurize import featurize as step

    section = parse_section(FeaturizeParams, params, "pipeline: featurize")
    summary = step(Path(studies.path), Path(reports.path), Path(features.path), section, settings())
    features.metadata.update(summary.model_dump(mode="json"))
