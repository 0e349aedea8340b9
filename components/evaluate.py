"""What the model is worth, beside its controls and its ceiling."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    cohort: str,
    studies: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    params: dict,
    code: str,
    evaluation: dsl.Output[dsl.Artifact],
):
    """Evaluate on the test split; the only step that may read the cohort's truth."""
    from pathlib import Path

    from willis.params import EvaluateParams, parse_section
    from willis.steps.evaluate import evaluate as step

    section = parse_section(EvaluateParams, params, "pipeline: evaluate")
    folders = [Path(cohort), Path(studies.path), Path(features.path), Path(model.path), Path(evaluation.path)]
    evaluation.metadata.update(auc=step(*folders, section).auc)
