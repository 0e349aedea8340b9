"""The trimodal network."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    studies: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    params: dict,
    code: str,
    model: dsl.Output[dsl.Model],
):
    """Train on the Ray cluster that WILLIS_RAY_ADDRESS names."""
    from pathlib import Path

    from willis.params import TrainParams, parse_section
    from willis.settings import settings
    from willis.steps.train import train as step

    section = parse_section(TrainParams, params, "pipeline: train")
    read = (Path(studies.path), Path(features.path))
    summary = step(*read, Path(model.path), section, settings(), Path(encoder.path))
    model.metadata.update(summary.model_dump(mode="json"))
