"""The contract with callers: it changes only when somebody means it to."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.openapi import PATH, description
from serving.problems import KINDS
from serving.schema import FILE_PARTS


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PATH.read_text())
    return found


def test_the_checked_in_description_is_the_codes() -> None:
    assert PATH.read_text() == description(), "run `python -m serving.openapi` and read the difference"


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    names = set(described["components"]["schemas"])
    used = {part.split('"')[0] for part in PATH.read_text().split("#/components/schemas/")[1:]}
    assert used == names


def test_every_route_tells_its_problems_in_one_shape(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            failures = {code: answer for code, answer in route["responses"].items() if int(code) >= 400}
            assert "500" in failures, (path, method)
            for code, answer in failures.items():
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (path, method, code)


def test_the_form_names_every_file_part(described: dict[str, Any]) -> None:
    body = described["paths"]["/v1/predictions"]["post"]["requestBody"]["content"]
    assert set(body["multipart/form-data"]["schema"]["properties"]) == {"request", *FILE_PARTS}
    assert body["application/json"]["schema"] == {"$ref": "#/components/schemas/PredictionRequest"}


def test_answers_are_closed_and_carry_the_notice(described: dict[str, Any]) -> None:
    answer = described["components"]["schemas"]["PredictionAnswer"]
    assert answer["additionalProperties"] is False
    assert "research only" in answer["properties"]["notice"]["default"].lower()
    assert {"probability", "prediction_set", "modalities_used", "attribution", "bundle_version"} <= set(
        answer["required"]
    )


def test_kinds_of_problem_have_names_of_their_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) == len({kind.title for kind in KINDS})


def test_the_example_serve_config_is_one_that_serve_and_willis_accept() -> None:
    from ray.serve.schema import ServeDeploySchema
    from ruamel.yaml import YAML

    from serving.config import ServeConfig

    values = YAML(typ="safe").load(Path(PATH).with_name("serve.yaml"))
    application = ServeDeploySchema.model_validate(values).applications[0]
    assert application.import_path == "serving.app:build"
    assert ServeConfig.model_validate(application.args).ingest.sequences == ("dwi", "adc", "flair")
