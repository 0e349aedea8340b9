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
        data = version(
            cohort=cohort,
            cohort_digest=cohort_digest,
            params=sections["version"],
            code=code_digest("version"),
        )
        studies = ingest(
            cohort=cohort,
            data=data.outputs["data"],
            params=sections["ingest"],
            code=code_digest("ingest"),
        )
        reports = report(
            studies=studies.outputs["studies"], params=sections["report"], code=code_digest("report")
        )
        features = featurize(
            studies=studies.outputs["studies"],
            reports=reports.outputs["reports"],
            params=sections["featurize"],
            code=code_digest("featurize"),
        )
        arrays = {"studies": studies.outputs["studies"], "features": features.outputs["features"]}
        model = train(**arrays, params=sections["train"], code=code_digest("train"))
        evaluation = evaluate(
            cohort=cohort,
            **arrays,
            model=model.outputs["model"],
            params=sections["evaluate"],
            code=code_digest("evaluate"),
        )
        promotion = promote(
            data=data.outputs["data"],
            **arrays,
            model=model.outputs["model"],
            evaluation=evaluation.outputs["evaluation"],
            params=sections["promote"],
            code=code_digest("promote"),
        )
        tasks = [data, studies, reports, features, model, evaluation, promotion]
        if with_deploy:
            tasks.append(_deploy(promotion, sections))
        if num_gpus:
            model.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(num_gpus)
        if cluster:
            for task in tasks:
                on_cluster(task)
        return Outputs(
            data=data.outputs["data"],
            studies=studies.outputs["studies"],
            reports=reports.outputs["reports"],
            features=features.outputs["features"],
            model=model.outputs["model"],
            evaluation=evaluation.outputs["evaluation"],
            promotion=promotion.outputs["promotion"],
        )

    return training


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
