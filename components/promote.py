"""The bundle in the registry, and the alias if the gate holds."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    data: dsl.Input[dsl.Dataset],
    studies: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    params: dict,
    code: str,
    promotion: dsl.Output[dsl.Artifact],
):
    """Write the bundle; move the alias only if the gate in params.yaml holds."""
    from pathlib import Path

    from willis.params import PromoteParams, parse_section
    from willis.settings import settings
    from willis.steps.promote import promote as step

    section = parse_section(PromoteParams, params, "pipeline: promote")
    folders = [Path(item.path) for item in (data, studies, features, model, evaluation, promotion)]
    promotion.metadata.update(step(*folders, section, settings()).model_dump(mode="json"))
