"""The image encoder, without labels."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(studies: dsl.Input[dsl.Dataset], params: dict, code: str, encoder: dsl.Output[dsl.Model]):
    """Pre-train on the Ray cluster that WILLIS_RAY_ADDRESS names; nothing to do where the method is none."""
    from pathlib import Path

    from willis.params import PretrainParams, parse_section
    from willis.settings import settings
    from willis.steps.pretrain import pretrain as step

    section = parse_section(PretrainParams, params, "pipeline: pretrain")
    summary = step(Path(studies.path), Path(encoder.path), section, settings())
    encoder.metadata.update(summary.model_dump(mode="json"))
