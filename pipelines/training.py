"""The training pipeline: version, ingest, report, featurize, train, evaluate, promote, deploy.

`python -m pipelines.training --out training.yaml` compiles it; `willis pipeline submit training.yaml`
runs it on a cluster; pipelines/local.py runs it on this machine.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl, kubernetes

from components.deploy import deploy
from components.evaluate import evaluate
from components.featurize import featurize
from components.ingest import ingest
from components.promote import promote
from components.report import report
from components.train import train
from components.version import version
from willis.params import Params, load_params
from willis.provenance import code_digest

SECRET = "willis"
SECRET_KEYS = {
    "database-url": "WILLIS_DATABASE_URL",
    "s3-access-key": "WILLIS_S3_ACCESS_KEY",
    "s3-secret-key": "WILLIS_S3_SECRET_KEY",
    "pseudonym-key": "WILLIS_PSEUDONYM_KEY",
    "report-api-key": "WILLIS_REPORT_API_KEY",
}
CONFIG_MAP = "willis"
CONFIG_KEYS = {
    name.lower().replace("_", "-"): f"WILLIS_{name}"
    for name in (
        "RAY_ADDRESS",
        "RAY_DASHBOARD_URL",
        "ENDPOINT_URL",
        "REGISTRY",
        "OBJECT_STORE",
        "S3_ENDPOINT_URL",
        "DVC_REMOTE",
        "FEAST_ONLINE",
        "REPORT_URL",
    )
}
CPU, MEMORY = "4", "16Gi"


COMPONENTS: dict[str, tuple[Callable[..., dsl.PipelineTask], tuple[str, ...]]] = {
    "version": (version, ("cohort", "cohort_digest")),
    "ingest": (ingest, ("cohort", "data")),
    "report": (report, ("studies",)),
    "featurize": (featurize, ("studies", "reports")),
    "train": (train, ("studies", "features")),
    "evaluate": (evaluate, ("cohort", "studies", "features", "model")),
    "promote": (promote, ("data", "studies", "features", "model", "evaluation")),
}
"""The steps in their order, and what each reads: arguments of the pipeline, or outputs of earlier steps."""

OUTPUTS = {
    "version": "data",
    "ingest": "studies",
    "report": "reports",
    "featurize": "features",
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
        num_gpus: GPUs that the training step requests; 0 where the Ray cluster brings its own.
        cluster: mount the secret and the config map that hold the settings.
    """
    sections = {name: section.model_dump(mode="json") for name, section in params if name != "cohort"}

    @dsl.pipeline(
        name="willis-training", description="From a cohort to a promoted bundle. For research only."
    )
    def training(cohort: str, cohort_digest: str = "unknown") -> Outputs:
        tasks = _steps(cohort, cohort_digest, sections)
        if with_deploy:
            tasks["deploy"] = _deploy(tasks["promote"], sections)
        if num_gpus:
            tasks["train"].set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(num_gpus)
        if cluster:
            for task in tasks.values():
                on_cluster(task)
        return Outputs(**{name: tasks[step].outputs[name] for step, name in OUTPUTS.items()})

    return training


def _steps(cohort: str, cohort_digest: str, sections: dict[str, Any]) -> dict[str, dsl.PipelineTask]:
    """Wire the steps; `read` holds every artifact made so far, under the name that its readers use."""
    tasks: dict[str, dsl.PipelineTask] = {}
    read: dict[str, Any] = {"cohort": cohort, "cohort_digest": cohort_digest}
    for step, (component, names) in COMPONENTS.items():
        inputs = {name: read[name] for name in names}
        tasks[step] = component(**inputs, params=sections[step], code=code_digest(step))
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


def on_cluster(task: dsl.PipelineTask) -> None:
    """Give a task what a cluster must be told: limits, retries, and where its settings come from."""
    task.set_cpu_limit(CPU).set_memory_limit(MEMORY)
    task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    kubernetes.use_secret_as_env(task, secret_name=SECRET, secret_key_to_env=SECRET_KEYS)
    kubernetes.use_config_map_as_env(task, config_map_name=CONFIG_MAP, config_map_key_to_env=CONFIG_KEYS)


def main() -> None:
    """Compile to YAML."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/training.yaml"), help="YAML file to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default arguments")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the training step requests")
    parser.add_argument("--no-deploy", action="store_true", help="end with the promotion")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pipeline = graph(
        load_params(arguments.params), with_deploy=not arguments.no_deploy, num_gpus=arguments.gpus
    )
    compiler.Compiler().compile(pipeline, str(arguments.out))
    print(f"{arguments.out}: submit it with `willis pipeline submit {arguments.out} --host https://...`")


if __name__ == "__main__":
    main()
