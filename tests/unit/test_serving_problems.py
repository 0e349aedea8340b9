"""Every way in which a request can fail has one shape, and leaves nothing behind."""

import asyncio
import gzip
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.problems import KINDS, Problem
from tests.served import CLINICAL, LocalEndpoint, call, local_endpoint, test_settings
from willis.errors import StoreError
from willis.params import DeployParams


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEndpoint]:
    with local_endpoint(tmp_path_factory.mktemp("served"), deploy=DeployParams(max_upload_mb=1)) as endpoint:
        yield endpoint


def check_problem(answer: httpx.Response, status: int, name: str) -> Problem:
    """The shape of RFC 9457, whatever went wrong."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status and problem.type == f"urn:willis:problem:{name}"
    assert problem.instance == f"urn:willis:request:{answer.headers['x-request-id']}"
    assert problem.title in {kind.title for kind in KINDS} and problem.detail
    return problem


def post_file(served: LocalEndpoint, content: bytes, name: str = "dwi", **request: Any) -> httpx.Response:
    return call(
        served, "POST", "/v1/predictions",
        data={"request": json.dumps(request)}, files={name: ("x.nii.gz", content)},
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/nowhere", "/v1/predictions/unknown-id", "/v1", "/docs"])
def test_what_is_not_there_is_a_problem(served: LocalEndpoint, path: str) -> None:
    check_problem(call(served, "GET", path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/model"), ("GET", "/v1/predictions"), ("PUT", "/v1/outcomes"), ("POST", "/healthz")],
)
def test_a_method_that_is_not_allowed_is_a_problem(served: LocalEndpoint, method: str, path: str) -> None:
    answer = call(served, method, path)
    check_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"clinical": {"glucose_mmol_l": 126}}, "clinical.glucose_mmol_l"),
        ({"clinical": {"agee": 71}}, "clinical.agee"),
        ({"clinical": {"age": "old"}}, "clinical.age"),
        ({"patient_id": "a b/c"}, "patient_id"),
        ({"clinical": {"age": 70}, "space": "talairach"}, "space"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_field_that_breaks_a_rule_is_named_without_its_value(
    served: LocalEndpoint, request_: dict[str, Any], field: str
) -> None:
    problem = check_problem(call(served, "POST", "/v1/predictions", json=request_), 422, "invalid-input")
    assert field in [item.field for item in problem.errors] and field in problem.detail
    assert "126" not in problem.detail


@pytest.mark.parametrize("mrs", [7, -1, 2.5, "3", None])
def test_an_outcome_outside_the_scale_is_refused(served: LocalEndpoint, mrs: object) -> None:
    answer = call(served, "POST", "/v1/outcomes", json={"prediction_id": "x", "mrs_90d": mrs})
    problem = check_problem(answer, 422, "invalid-input")
    assert "mrs_90d" in problem.detail


def test_an_outcome_of_an_unknown_prediction_is_not_found(served: LocalEndpoint) -> None:
    answer = call(served, "POST", "/v1/outcomes", json={"prediction_id": "x", "mrs_90d": 3})
    check_problem(answer, 404, "not-found")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a volume at all", "dwi.nii"),
        (gzip.compress(b"still no volume"), "dwi.nii.gz"),
        (b"", "dwi.nii"),
    ],
)
def test_a_file_that_is_no_volume_is_named_without_its_place(
    served: LocalEndpoint, content: bytes, says: str
) -> None:
    problem = check_problem(post_file(served, content), 422, "invalid-input")
    assert says in problem.detail and tempfile.gettempdir() not in problem.detail


def test_a_truncated_volume_is_refused(served: LocalEndpoint, study: dict[str, Path]) -> None:
    whole = study["dwi"].read_bytes()
    problem = check_problem(post_file(served, whole[: len(whole) // 2], space="mni152"), 422, "invalid-input")
    assert "dwi.nii.gz" in problem.detail and "copy it again" in problem.detail


def test_a_gzip_bomb_is_refused_without_unpacking_it(served: LocalEndpoint) -> None:
    import nibabel as nib
    import numpy as np

    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 1024))
    header.set_data_dtype(np.int16)
    header.set_zooms((1, 1, 1))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    bomb = gzip.compress(header.binaryblock + b"\0\0\0\0" + b"\0" * (64 << 20))
    assert len(bomb) < 1 << 20
    problem = check_problem(post_file(served, bomb, space="mni152"), 422, "invalid-input")
    assert "unpacks to 2147 MB (shape (1024, 1024, 1024)); at most 512 MB are read" in problem.detail


def test_a_body_that_is_too_large_is_refused_by_its_length(served: LocalEndpoint) -> None:
    problem = check_problem(post_file(served, b"\1" * (2 << 20)), 413, "too-large")
    assert "1 MiB" in problem.detail and "object store" in problem.detail


@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/outcomes"])
def test_a_body_without_a_length_is_counted_as_it_comes(served: LocalEndpoint, path: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"\1" * (1 << 16)

    answer = call(served, "POST", path, content=pieces(), headers={"content-type": "application/json"})
    check_problem(answer, 413, "too-large")


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "", "application/xml"])
def test_a_body_of_another_kind_is_refused(served: LocalEndpoint, kind: str) -> None:
    answer = call(served, "POST", "/v1/predictions", content=b"x", headers={"content-type": kind})
    check_problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe"])
def test_json_that_is_none_or_no_object_is_refused(served: LocalEndpoint, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = call(served, "POST", "/v1/predictions", content=body, headers=headers)
    check_problem(answer, 400, "bad-request")


def test_a_form_that_is_broken_is_refused(served: LocalEndpoint) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = call(served, "POST", "/v1/predictions", content=b"--y\r\nnothing", headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_parts_that_nobody_knows_or_that_come_twice_are_refused(
    served: LocalEndpoint, study: dict[str, Path]
) -> None:
    check_problem(post_file(served, b"x", name="ct"), 400, "bad-request")
    parts = [("dwi", ("a", b"1")), ("dwi", ("b", b"2"))]
    check_problem(call(served, "POST", "/v1/predictions", files=parts), 400, "bad-request")


def test_a_volume_both_sent_and_referred_to_is_refused(served: LocalEndpoint, study: dict[str, Path]) -> None:
    answer = post_file(served, study["dwi"].read_bytes(), objects={"dwi": "a.nii.gz"})
    check_problem(answer, 422, "invalid-input")


def test_an_empty_request_says_what_to_send(served: LocalEndpoint) -> None:
    problem = check_problem(call(served, "POST", "/v1/predictions", json={}), 422, "invalid-input")
    assert "send at least one" in problem.detail


def test_an_error_that_nobody_foresaw_shows_no_trace_and_no_value(
    served: LocalEndpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("patient Jane Doe")

    monkeypatch.setattr(served.endpoint.caseworker, "assemble", fail)
    answer = call(served, "POST", "/v1/predictions", json={"clinical": CLINICAL})
    check_problem(answer, 500, "internal")
    assert "Jane" not in answer.text and "Jane" not in caplog.text
    assert "RuntimeError at" in caplog.text and answer.headers["x-request-id"] in caplog.text


def test_no_answer_leaves_without_its_row(served: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(row: object) -> None:
        raise StoreError("the prediction log at postgresql://db/willis does not answer")

    before = served.endpoint.log.count()
    monkeypatch.setattr(served.endpoint.log, "append", fail)
    answer = call(served, "POST", "/v1/predictions", json={"clinical": CLINICAL})
    problem = check_problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] and "postgresql" not in problem.detail
    assert "probability" not in answer.text and served.endpoint.log.count() == before


def test_a_deadline_that_passes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(case: object) -> None:
        await asyncio.sleep(60)

    with local_endpoint(tmp_path, deploy=DeployParams(request_deadline_s=0.1)) as slow:
        monkeypatch.setattr(slow.endpoint.model, "predict", never)
        answer = call(slow, "POST", "/v1/predictions", json={"clinical": CLINICAL})
        check_problem(answer, 504, "deadline")
        assert slow.endpoint.log.count() == 0


def test_more_predictions_than_allowed_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[int]:
        release = asyncio.Event()
        original = crowded.endpoint.model.predict

        async def wait(case: object) -> object:
            await release.wait()
            return await original(case)

        monkeypatch.setattr(crowded.endpoint.model, "predict", wait)
        sent = [
            asyncio.create_task(crowded.client.post("/v1/predictions", json={"clinical": CLINICAL}))
            for _ in range(5)
        ]
        refused = await _first(sent)
        release.set()
        answers = await asyncio.gather(*sent)
        assert refused.status_code == 503
        return sorted(answer.status_code for answer in answers)

    with local_endpoint(tmp_path, deploy=DeployParams(max_in_flight=2)) as crowded:
        assert asyncio.run(run()) == [201, 201, 503, 503, 503]


async def _first(tasks: list["asyncio.Task[httpx.Response]"]) -> httpx.Response:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


def test_what_a_caller_sent_is_gone_from_disk_when_the_answer_leaves(
    served: LocalEndpoint, study: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert post_file(served, study["dwi"].read_bytes(), space="mni152").status_code == 201
    assert post_file(served, b"junk").status_code == 422
    assert list(tmp_path.iterdir()) == []


def test_a_request_id_of_the_caller_is_kept_when_it_is_harmless(served: LocalEndpoint) -> None:
    kept = call(served, "GET", "/v1/model", headers={"x-request-id": "order-12345"})
    assert kept.headers["x-request-id"] == "order-12345"
    other = call(served, "GET", "/v1/model", headers={"x-request-id": "a\tb; drop"})
    assert other.headers["x-request-id"] != "a\tb; drop"


def test_with_keys_only_their_holders_are_served(tmp_path: Path) -> None:
    settings = test_settings(tmp_path, api_keys="first-key, second-key")
    with local_endpoint(tmp_path, settings=settings) as guarded:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first-key"}):
            answer = call(guarded, "GET", "/v1/model", headers=header)
            check_problem(answer, 401, "unauthorised")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert call(guarded, "GET", "/v1/model", headers=headers).status_code == 200
        check_problem(call(guarded, "GET", "/metrics"), 401, "unauthorised")
        check_problem(call(guarded, "GET", "/nowhere"), 401, "unauthorised")
        assert call(guarded, "GET", "/healthz").status_code == 200


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    with local_endpoint(tmp_path, peer="192.0.2.7") as remote:
        check_problem(call(remote, "GET", "/v1/model"), 403, "loopback-only")
        check_problem(call(remote, "POST", "/v1/predictions", json={}), 403, "loopback-only")
        assert call(remote, "GET", "/healthz").status_code == 200


def test_empty_keys_are_no_keys(tmp_path: Path) -> None:
    with local_endpoint(tmp_path, settings=test_settings(tmp_path, api_keys=" , ")) as local:
        assert call(local, "GET", "/v1/model").status_code == 200
        answer = call(local, "GET", "/v1/model", headers={"authorization": "Bearer "})
        assert answer.status_code == 200
