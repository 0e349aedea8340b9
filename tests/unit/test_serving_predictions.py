"""POST and GET of predictions, through the real application in this process."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import CLINICAL, LocalEndpoint, call, local_endpoint
from willis.params import DeployParams, ReportParams
from willis.pseudonym import pseudonym


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEndpoint]:
    with local_endpoint(tmp_path_factory.mktemp("served")) as endpoint:
        yield endpoint


def predict(served: LocalEndpoint, files: dict[str, Path] | None = None, **request: Any) -> httpx.Response:
    parts = {name: (path.name, path.read_bytes()) for name, path in (files or {}).items()}
    asked = {"space": "mni152"} | request
    if not parts:
        return call(served, "POST", "/v1/predictions", json=asked)
    return call(served, "POST", "/v1/predictions", data={"request": json.dumps(asked)}, files=parts)


def test_volumes_and_table_are_answered_with_every_promised_field(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    answer = predict(served, study, clinical=CLINICAL, patient_id="sub-1", scanner="north")
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["modalities_used"] == ["image", "text", "table"]
    assert 0 < body["probability"] < 1 and set(body["prediction_set"]) <= {"good", "poor"}
    shares = body["attribution"]
    assert sum(shares.values()) == pytest.approx(body["probability"], abs=1e-6)
    assert body["facts"]["laterality"] == "left" and body["facts"]["volume_ml"] > 1
    assert body["report"]["source"] == "written" and "left" in body["report"]["text"]
    assert body["bundle_version"] == served.bundle.version
    assert "research only" in body["notice"].lower()


def test_the_answer_is_that_of_the_library_on_the_same_files(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    from willis.casework import Caseworker, ClinicalRow
    from willis.inference import Predictor

    answer = predict(served, study, clinical=CLINICAL).json()
    worker = Caseworker(served.endpoint.config.ingest, ReportParams(), served.settings)
    prepared = worker.prepare(study, "mni152")
    case = worker.assemble("x", prepared, ClinicalRow(**CLINICAL), worker.write_report(prepared)).case
    expected = Predictor.from_bundle(served.bundle.folder).predict([case])[0]
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert prepared is not None and answer["facts"]["volume_ml"] == prepared.facts.volume_ml


def test_a_prediction_is_a_row_of_the_log_and_reads_back_to_the_letter(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    answer = predict(served, study, clinical=CLINICAL, patient_id="sub-1", site="a")
    prediction_id = answer.json()["prediction_id"]
    found = served.endpoint.log.get(prediction_id)
    assert found is not None
    row = found.row
    assert row.patient == pseudonym("sub-1", "test") and row.site == "a"
    assert row.table["age"] == 71 and row.facts["laterality"] == "left"
    assert row.report["laterality"] == "left" and row.report_writer == "facts"
    assert row.request_id == answer.headers["x-request-id"]
    assert len(row.embedding) > 0 and row.latency_ms > 0
    again = call(served, "GET", f"/v1/predictions/{prediction_id}")
    assert again.status_code == 200 and again.content == answer.content


def test_the_patients_own_id_is_nowhere_in_the_database(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    assert predict(served, study, patient_id="sub-secret-77", clinical=CLINICAL).status_code == 201
    root = Path(served.settings.registry).parent
    assert not any(b"sub-secret-77" in path.read_bytes() for path in root.glob("log.db*"))


def test_a_table_alone_is_enough(served: LocalEndpoint) -> None:
    answer = predict(served, clinical=CLINICAL)
    assert answer.status_code == 201, answer.text
    assert answer.json()["modalities_used"] == ["table"]
    assert answer.json()["facts"] is None and answer.json()["report"]["source"] == "none"


def test_volumes_may_come_from_the_object_store(served: LocalEndpoint, study: dict[str, Path]) -> None:
    for name, path in study.items():
        served.endpoint.objects.put(f"studies/1/{name}.nii.gz", path.read_bytes())
    keys = {name: f"studies/1/{name}.nii.gz" for name in study}
    by_key = predict(served, objects=keys, clinical=CLINICAL)
    assert by_key.status_code == 201, by_key.text
    by_file = predict(served, study, clinical=CLINICAL)
    assert by_key.json()["probability"] == by_file.json()["probability"]


@pytest.mark.parametrize(
    "key",
    ["../registry/aliases/champion.json", "/etc/passwd", "s3://other/x", "file:///etc/passwd", "a/../../b"],
)
def test_a_reference_cannot_leave_the_object_store(served: LocalEndpoint, key: str) -> None:
    answer = predict(served, objects={"dwi": key})
    assert answer.status_code == 422 and "object key" in answer.json()["detail"]


def test_an_absent_object_is_named(served: LocalEndpoint) -> None:
    answer = predict(served, objects={"dwi": "studies/none.nii.gz"})
    assert answer.status_code == 422 and "studies/none.nii.gz" in answer.json()["detail"]


def test_findings_that_are_sent_are_read_by_the_model_and_held_against_the_facts(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    findings = {"acute_infarct": "yes", "laterality": "right", "impression": "Acute infarct on the right."}
    answer = predict(served, study, report=findings).json()
    assert answer["report"]["source"] == "sent"
    assert answer["report"]["text"] == "Acute infarct on the right."
    assert answer["report"]["report"]["writer"] == "caller"
    assert any("right" in warning and "left" in warning for warning in answer["warnings"])


def test_free_text_that_is_sent_is_used_as_it_is(served: LocalEndpoint) -> None:
    answer = predict(served, report="Small acute infarct in the left insula.").json()
    assert answer["modalities_used"] == ["text"]
    assert answer["report"] == {
        "source": "sent", "text": "Small acute infarct in the left insula.", "report": None, "failure": None
    }  # fmt: skip


@pytest.mark.parametrize("report", ["NIHSS 14, poor prognosis.", {"impression": "Recommend thrombectomy."}])
def test_a_report_that_says_what_it_must_not_is_refused(served: LocalEndpoint, report: object) -> None:
    answer = predict(served, report=report)
    assert answer.status_code == 422 and "must not speak of" in answer.json()["detail"]


def test_a_writer_that_fails_costs_the_text_and_not_the_answer(
    served: LocalEndpoint, study: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        name, model, prompt_hash, temperature = "llm", "m", "h", 0.0

        async def write(self, study: object, *, attempt: int) -> None:
            from willis.errors import ReportServerError

            raise ReportServerError("the server is away")

        async def close(self) -> None:
            pass

    monkeypatch.setattr(served.endpoint.caseworker, "_writer", Failing())
    answer = predict(served, study, clinical=CLINICAL)
    assert answer.status_code == 201
    assert answer.json()["modalities_used"] == ["image", "table"]
    assert answer.json()["report"]["failure"] == "the server is away"


def test_a_writer_that_is_slow_costs_the_text_and_not_the_answer(
    tmp_path: Path, study: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        name, model, prompt_hash, temperature = "llm", "m", "h", 0.0

        async def write(self, study: object, *, attempt: int) -> None:
            await asyncio.sleep(1)

        async def close(self) -> None:
            pass

    with local_endpoint(tmp_path, deploy=DeployParams(report_deadline_s=0.05)) as served:
        monkeypatch.setattr(served.endpoint.caseworker, "_writer", Slow())
        answer = predict(served, study, clinical=CLINICAL)
    assert answer.status_code == 201
    assert "text" not in answer.json()["modalities_used"]
    assert "within 0.05 s" in answer.json()["report"]["failure"]


def test_without_a_writer_there_is_no_text(tmp_path: Path, study: dict[str, Path]) -> None:
    with local_endpoint(tmp_path, report=ReportParams(writer="none")) as served:
        answer = predict(served, study).json()
    assert answer["modalities_used"] == ["image"] and answer["report"]["failure"] is None


def test_a_missing_sequence_is_normal(served: LocalEndpoint, study: dict[str, Path]) -> None:
    answer = predict(served, {"dwi": study["dwi"]})
    assert answer.status_code == 201 and "image" in answer.json()["modalities_used"]
    assert answer.json()["facts"]["infarct_present"] is None


def test_requests_that_come_together_get_their_own_answers(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    async def send(age: int) -> httpx.Response:
        request = {"clinical": {"age": age, "nihss": 5}}
        return await served.client.post("/v1/predictions", json=request)

    async def all_of_them() -> list[httpx.Response]:
        return list(await asyncio.gather(*(send(age) for age in range(40, 60))))

    together = [answer.json()["probability"] for answer in asyncio.run(all_of_them())]
    alone = [
        predict(served, clinical={"age": age, "nihss": 5}).json()["probability"] for age in range(40, 60)
    ]
    assert together == pytest.approx(alone, abs=1e-7) and len(set(together)) == 20


def test_the_outcome_is_kept_once(served: LocalEndpoint) -> None:
    prediction_id = predict(served, clinical=CLINICAL).json()["prediction_id"]
    told = {"prediction_id": prediction_id, "mrs_90d": 4}
    first, second = (call(served, "POST", "/v1/outcomes", json=told) for _ in range(2))
    assert first.json()["result"] == "recorded" and first.json()["poor_outcome"] is True
    assert second.status_code == 200 and second.json()["result"] == "unchanged"
    other = call(served, "POST", "/v1/outcomes", json=told | {"mrs_90d": 2})
    assert other.status_code == 409 and "another outcome" in other.json()["detail"]


def test_model_health_and_metrics_tell_what_runs(served: LocalEndpoint) -> None:
    version = served.bundle.version
    model = call(served, "GET", "/v1/model").json()
    assert model["bundle_version"] == version and model["sequences"] == ["dwi", "adc", "flair"]
    assert model["lineage"]["git_revision"] == "a" * 40
    assert call(served, "GET", "/healthz").json() == {"status": "ok", "bundle_version": version}
    (served.settings.monitor_dir).mkdir(exist_ok=True)
    (served.settings.monitor_dir / "latest.prom").write_text("willis_drift 1.0\n")
    metrics = call(served, "GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert f'willis_predictions_total{{bundle_version="{version}"' in metrics.text
    assert 'route="/v1/predictions/{prediction_id}"' in metrics.text and "willis_drift 1.0" in metrics.text
