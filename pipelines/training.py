"""The training pipeline: version, ingest, report, featurize, pretrain, train, evaluate, promote, deploy.

`python -m pipelines.training --out training.yaml` compiles it; `willis pipeline submit training.yaml`
runs it on a cluster; pipelines/local.py runs it on this machine.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl

from components.deploy import deploy
from components.evaluate import evaluate
from components.featurize import featurize
from components.ingest import ingest
from components.pretrain import pretrain
from components.promote import promote
from components.report import report
from components.train import train
from components.version import version
from pipelines.cluster import on_cluster
from willis.errors import WillisError
from willis.params import Params, load_params, parse_section
from willis.provenance import code_digest

COMPONENTS: dict[str, tuple[Callable[..., dsl.PipelineTask], tuple[str, ...]]] = {
    "version": (version, ("cohort", "cohort_digest")),
    "ingest": (ingest, ("cohort", "data")),
    "report": (report, ("studies",)),
    "featurize": (featurize, ("studies", "reports")),
    "pretrain": (pretrain, ("studies",)),
    "train": (train, ("studies", "features", "encoder")),
    "evaluate": (evaluate, ("cohort", "studies", "features", "model")),
    "promote": (promote, ("data", "studies", "features", "model", "evaluation")),
}
"""The steps in their order, and what each reads: arguments of the pipeline, or outputs of earlier steps."""

OUTPUTS = {
    "version": "data",
    "ingest": "studies",
    "report": "reports",
    "featurize": "features",
    "pretrain": "encoder",
    "train": "model",
    "evaluate": "evaluation",
    "promote": "promotion",
}
"""The name of each step's one output."""


class Outputs(NamedTuple):
    """What the pipeline leaves behind: one artifact per step."""

    data: dsl.Dataset
    studies: dsl.Dataset
    reports: dsl.Dataset
    features: dsl.Dataset
    encoder: dsl.Model
    model: dsl.Model
    evaluation: dsl.Artifact
    promotion: dsl.Artifact


def graph(
    params: Params, *, with_deploy: bool, num_gpus: int = 0, cluster: bool = True
) -> Callable[..., Any]:
    """Build the pipeline function with the sections of params as its default arguments.

    Args:
        params: one section per step.
        with_deploy: append the deploy step; `make demo` deploys by itself.
        num_gpus: GPUs that the training step, and pre-training where there is any, request and train on, one
            worker each; 0 leaves params as they are (train.use_gpu: true without a request is for a Ray
            cluster that brings its own).
        cluster: mount the secret and the config map that hold the settings.
    """
    params = _on_gpus(params, num_gpus) if num_gpus else params
    sections = {name: section.model_dump(mode="json") for name, section in params if name != "cohort"}

    @dsl.pipeline(
        name="willis-training", description="From a cohort to a promoted bundle. For research only."
    )
    def training(cohort: str, cohort_digest: str = "unknown") -> Outputs:
        tasks = _steps(cohort, cohort_digest, sections)
        if with_deploy:
            tasks["deploy"] = _deploy(tasks["promote"], sections)
        if num_gpus:
            for step in _on_ray(params):
                tasks[step].set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(num_gpus)
        if cluster:
            for task in tasks.values():
                on_cluster(task)
        return Outputs(**{name: tasks[step].outputs[name] for step, name in OUTPUTS.items()})

    return training


def _on_gpus(params: Params, num_gpus: int) -> Params:
    changed = {
        step: parse_section(
            type(getattr(params, step)),
            getattr(params, step).model_dump() | {"use_gpu": True, "num_workers": num_gpus},
            f"--gpus {num_gpus}",
        )
        for step in _on_ray(params)
    }
    return params.model_copy(update=changed)


def _on_ray(params: Params) -> tuple[str, ...]:
    """Steps that compute on the Ray cluster."""
    return ("train",) if params.pretrain.method == "none" else ("pretrain", "train")


def _steps(cohort: str, cohort_digest: str, sections: dict[str, Any]) -> dict[str, dsl.PipelineTask]:
    """Wire the steps; `read` holds every artifact made so far, under the name that its readers use."""
    tasks: dict[str, dsl.PipelineTask] = {}
    model = sections["report"]["model"]
    read: dict[str, Any] = {"cohort": cohort, "cohort_digest": cohort_digest}
    for step, (component, names) in COMPONENTS.items():
        inputs = {name: read[name] for name in names}
        tasks[step] = component(**inputs, params=sections[step], code=code_digest(step, model))
        read[OUTPUTS[step]] = tasks[step].outputs[OUTPUTS[step]]
    return tasks


def _deploy(promotion: dsl.PipelineTask, sections: dict[str, Any]) -> dsl.PipelineTask:
    task = deploy(
        promotion=promotion.outputs["promotion"],
        params=sections["deploy"],
        ingest=sections["ingest"],
        report=sections["report"],
    )
    # Ray may have been restarted since, and nothing in the inputs would show it.
    return task.set_caching_options(enable_caching=False)


def main() -> None:
    """Compile to YAML."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/training.yaml"), help="YAML file to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default arguments")
    gpus = "GPUs that training requests; sets train.use_gpu, and train.num_workers to their number"
    parser.add_argument("--gpus", type=int, default=0, help=gpus)
    parser.add_argument("--no-deploy", action="store_true", help="end with the promotion")
    arguments = parser.parse_args()
    try:
        params = load_params(arguments.params)
        pipeline = graph(params, with_deploy=not arguments.no_deploy, num_gpus=arguments.gpus)
    except WillisError as error:
        parser.error(str(error))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(arguments.out))
    print(f"{arguments.out}: submit it with `willis pipeline submit {arguments.out} --host https://...`")


if __name__ == "__main__":
    main()
