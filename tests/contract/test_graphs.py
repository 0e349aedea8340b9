"""KFP, DVC and the library agree on which step reads which."""

import re
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler
from ruamel.yaml import YAML

from pipelines import cluster, monitoring, training
from willis.errors import ParamsError
from willis.params import Params, load_params
from willis.provenance import GRAPH, code_digests
from willis.settings import Settings

DVC_FOLDERS = {"features": "featurize"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("kfp") / "training.yaml"
    graph = training.graph(Params(), with_deploy=True, num_gpus=2)
    compiler.Compiler().compile(graph, str(path))
    documents: list[dict[str, Any]] = list(YAML(typ="safe").load_all(path))
    return {"spec": documents[0], "platform": documents[1]}


def _kfp_edges(spec: dict[str, Any]) -> dict[str, set[str]]:
    edges = {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        artifacts = task.get("inputs", {}).get("artifacts", {}).values()
        edges[name] = {item["taskOutputArtifact"]["producerTask"] for item in artifacts}
    return edges


def test_the_pipeline_reads_what_the_library_says(compiled: dict[str, Any]) -> None:
    edges = _kfp_edges(compiled["spec"])
    assert edges.pop("deploy") == {"promote"}
    assert edges == {step: set(read) for step, read in GRAPH.items()}


def test_dvc_runs_the_same_graph(repository: Path) -> None:
    stages = YAML(typ="safe").load(repository / "dvc.yaml")["stages"]
    made = {path: stage for stage, spec in stages.items() for path in spec["outs"]} | {
        "data/cohort": "version",
        "data/version": "version",
    }
    edges = {stage: {made[dep] for dep in spec["deps"] if dep in made} for stage, spec in stages.items()}
    expected = {step: set(read) for step, read in GRAPH.items() if step != "version"}
    expected["evaluate"] |= {"version"}  # reads the cohort's truth, which KFP passes as a path
    assert edges == expected


def test_a_dvc_stage_is_named_after_its_params_section_and_command(repository: Path) -> None:
    for stage, spec in YAML(typ="safe").load(repository / "dvc.yaml")["stages"].items():
        assert spec["params"] == [stage]
        assert spec["cmd"].split()[:2] == ["willis", stage]
        assert stage in Params.model_fields


def _source_of(module: str, repository: Path) -> Path:
    """Where a name of `code_digests` lies: a module, or a file by its path."""
    if "/" in module:
        return Path(module)
    path = Path(*module.split("."))
    return path / "__init__.py" if (repository / path).is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("step", [step for step in GRAPH if step != "version"])
def test_a_dvc_stage_depends_on_the_code_that_its_step_reaches(step: str, repository: Path) -> None:
    stage = YAML(typ="safe").load(repository / "dvc.yaml")["stages"][step]
    deps = [Path(dep) for dep in stage["deps"] if not dep.startswith("data/")]
    reached = {_source_of(module, repository) for module in code_digests(step)}
    missing = {str(path) for path in reached if not any(path.is_relative_to(dep) for dep in deps)}
    idle = {str(dep) for dep in deps if not any(path.is_relative_to(dep) for path in reached)}
    assert (missing, idle) == (set(), set()), f"dvc.yaml: {step}.deps"


def test_every_step_carries_its_params_and_code_in_the_cache_key(compiled: dict[str, Any]) -> None:
    for name, task in compiled["spec"]["root"]["dag"]["tasks"].items():
        if name != "deploy":
            assert {"params", "code"} <= task["inputs"]["parameters"].keys()
            assert task["cachingOptions"]["enableCache"] is True


def test_deploy_never_comes_from_the_cache(compiled: dict[str, Any]) -> None:
    options = compiled["spec"]["root"]["dag"]["tasks"]["deploy"]["cachingOptions"]
    assert options.get("enableCache", False) is False


def test_the_training_step_requests_the_gpus(compiled: dict[str, Any]) -> None:
    executors = compiled["spec"]["deploymentSpec"]["executors"]
    accelerator = executors["exec-train"]["container"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "2")
    assert "accelerator" not in executors["exec-evaluate"]["container"]["resources"]


def test_the_gpus_that_are_requested_are_trained_on(compiled: dict[str, Any]) -> None:
    inputs = compiled["spec"]["root"]["dag"]["tasks"]["train"]["inputs"]["parameters"]
    params = inputs["params"]["runtimeValue"]["constant"]
    assert (params["use_gpu"], params["num_workers"]) == (True, 2)


def test_without_a_request_training_is_as_the_parameters_say(tmp_path: Path) -> None:
    path = tmp_path / "training.yaml"
    compiler.Compiler().compile(training.graph(Params(), with_deploy=False), str(path))
    tasks = next(iter(YAML(typ="safe").load_all(path)))["root"]["dag"]["tasks"]
    params = tasks["train"]["inputs"]["parameters"]["params"]["runtimeValue"]["constant"]
    assert (params["use_gpu"], params["num_workers"]) == (False, Params().train.num_workers)


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(ParamsError, match="num_workers is -1; .*--gpus -1"):
        training.graph(Params(), with_deploy=False, num_gpus=-1)


def test_every_task_has_limits_and_retries(compiled: dict[str, Any]) -> None:
    for name, task in compiled["spec"]["root"]["dag"]["tasks"].items():
        container = compiled["spec"]["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        assert container["resources"]["resourceCpuLimit"] == "4"
        assert container["resources"]["resourceMemoryLimit"] == "16Gi"
        assert task["retryPolicy"]["maxRetryCount"] == 2


def _variables(compiled: dict[str, Any], task: str, source: str) -> dict[str, bool]:
    """Variable -> whether its key may be absent, of what a task takes from the secret or the config map."""
    executors = compiled["platform"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        item["envVar"]: entry.get("optional", False)
        for entry in executors[f"exec-{task}"][source]
        for item in entry["keyToEnv"]
    }


def test_every_task_is_given_every_setting_that_is_not_local(compiled: dict[str, Any]) -> None:
    expected = {f"WILLIS_{name.upper()}" for name in Settings.model_fields if name not in cluster.LOCAL}
    for name in compiled["spec"]["root"]["dag"]["tasks"]:
        secrets = _variables(compiled, name, "secretAsEnv")
        config = _variables(compiled, name, "configMapAsEnv")
        assert secrets.keys() | config.keys() == expected | {cluster.RAY_VARIABLE}
        assert not secrets.keys() & config.keys()


def test_whatever_is_secret_comes_from_the_secret(compiled: dict[str, Any]) -> None:
    named = {field for field in Settings.model_fields if "Secret" in str(Settings.model_fields[field])}
    secrets = _variables(compiled, "train", "secretAsEnv").keys() - {cluster.RAY_VARIABLE}
    assert secrets == {f"WILLIS_{name.upper()}" for name in named - cluster.LOCAL.keys()}


def test_a_setting_without_a_value_of_its_own_may_be_absent_and_no_other(compiled: dict[str, Any]) -> None:
    variables = _variables(compiled, "train", "secretAsEnv") | _variables(compiled, "train", "configMapAsEnv")
    assert variables.pop(cluster.RAY_VARIABLE)
    assert {name for name, optional in variables.items() if optional} == {
        "WILLIS_RAY_AUTH_TOKEN", "WILLIS_ATLAS", "WILLIS_API_KEYS", "WILLIS_REPORT_API_KEY",
        "WILLIS_S3_ENDPOINT_URL", "WILLIS_S3_ACCESS_KEY", "WILLIS_S3_SECRET_KEY",
    }  # fmt: skip


def test_every_local_setting_exists_and_has_a_reason() -> None:
    assert cluster.LOCAL.keys() <= Settings.model_fields.keys()
    assert all(cluster.LOCAL.values())


def test_the_manifest_of_the_settings_names_every_key_and_no_other(repository: Path) -> None:
    text = (repository / "infra" / "k8s" / "settings.yaml").read_text()
    given, secret = YAML(typ="safe").load_all(text)
    assert (given["kind"], secret["kind"]) == ("ConfigMap", "Secret")
    assert {given["metadata"]["name"], secret["metadata"]["name"]} == {cluster.CONFIG_MAP, cluster.SECRET}
    assert given["data"].keys() == cluster.CONFIG_KEYS[False].keys()
    assert secret["stringData"].keys() == cluster.SECRET_KEYS[False].keys()
    absent = set(re.findall(r"^  # ([a-z0-9-]+): ", text, re.MULTILINE))
    assert absent == cluster.CONFIG_KEYS[True].keys() | cluster.SECRET_KEYS[True].keys()


def test_no_secret_stands_in_the_compiled_pipeline(compiled: dict[str, Any]) -> None:
    assert "willis-demo-only" not in str(compiled)


def test_the_monitoring_pipeline_compiles_and_is_never_cached(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.yaml"
    compiler.Compiler().compile(monitoring.graph(Params()), str(path))
    spec = next(iter(YAML(typ="safe").load_all(path)))
    assert spec["root"]["dag"]["tasks"]["monitor"]["cachingOptions"].get("enableCache", False) is False


def test_params_yaml_is_valid_and_has_a_section_per_step(repository: Path) -> None:
    params = load_params(repository / "params.yaml")
    assert set(GRAPH) | {"cohort", "deploy", "monitor", "tune"} == set(type(params).model_fields)
