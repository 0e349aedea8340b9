"""The application on a real Ray cluster, behind HAProxy, with its log in a real PostgreSQL."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fixtures.ray import RayHead
from tests.served import CLINICAL, SMALL, publish, small_bundle, test_settings, volumes
from willis.errors import RayError, SettingsError
from willis.models.bundle import Bundle
from willis.params import DeployParams, ReportParams
from willis.settings import Settings
from willis.steps.deploy import deploy
from willis.stores.predictions import PredictionLog

pytestmark = pytest.mark.integration

PARAMS = DeployParams(num_replicas=2, cpus_per_replica=0.25, healthy_within_s=400)


@dataclass(frozen=True)
class Served:
    """The deployed application, and what it was deployed from."""

    settings: Settings
    bundle: Bundle
    root: Path
    client: httpx.Client
    study: dict[str, Path]

    def predict(self, **request: Any) -> httpx.Response:
        files = {name: (name, path.read_bytes()) for name, path in self.study.items()}
        form = {"request": json.dumps({"space": "mni152", "clinical": CLINICAL} | request)}
        return self.client.post("/v1/predictions", data=form, files=files)

    def log(self) -> PredictionLog:
        return PredictionLog(self.settings.database_url.get_secret_value())


@pytest.fixture(scope="module")
def served(
    ray_head: RayHead, postgres_server: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    from infra.local.processes import free_port

    root, bind = tmp_path_factory.mktemp("served"), f"127.0.0.1:{free_port()}"
    settings = test_settings(
        root, ray_dashboard_url=ray_head.dashboard_url, serve_bind=bind, endpoint_url=f"http://{bind}",
        database_url=postgres_server(),
    )  # fmt: skip
    bundle = small_bundle(root / "bundle")
    publish(bundle, settings)
    deployment = deploy(None, PARAMS, settings, SMALL, ReportParams())
    assert (deployment.version, deployment.url) == (bundle.version, settings.endpoint_url)
    with httpx.Client(base_url=deployment.url, timeout=60) as client:
        yield Served(settings, bundle, root, client, volumes(root / "study"))
    httpx.delete(f"{ray_head.dashboard_url}/api/serve/applications/", timeout=120).raise_for_status()


def test_a_prediction_over_http_is_the_librarys_and_in_the_log(served: Served) -> None:
    from willis.casework import Caseworker, ClinicalRow
    from willis.inference import Predictor

    answer = served.predict(patient_id="sub-1")
    assert answer.status_code == 201, answer.text
    worker = Caseworker(SMALL, ReportParams(), served.settings)
    prepared = worker.prepare(served.study, "mni152")
    case = worker.assemble("x", prepared, ClinicalRow(**CLINICAL), worker.write_report(prepared)).case
    expected = Predictor.from_bundle(served.bundle.folder).predict([case])[0]
    assert answer.json()["probability"] == pytest.approx(expected.probability, abs=1e-5)
    found = served.log().get(answer.json()["prediction_id"])
    assert found is not None and found.row.answer == answer.text
    again = served.client.get(f"/v1/predictions/{answer.json()['prediction_id']}")
    assert again.content == answer.content


def test_the_ingress_is_haproxy(served: Served) -> None:
    port = int(served.settings.serve_bind.rpartition(":")[2])
    listening = {
        psutil.Process(item.pid).name()
        for item in psutil.net_connections("tcp")
        if item.status == psutil.CONN_LISTEN and item.laddr.port == port and item.pid
    }
    assert listening == {"haproxy"}


def test_callers_at_once_get_their_own_answers_and_are_all_logged(served: Served) -> None:
    def ask(age: int) -> tuple[int, float, str]:
        with httpx.Client(base_url=served.settings.endpoint_url, timeout=60) as client:
            answer = client.post("/v1/predictions", json={"clinical": {"age": age, "nihss": 4}})
        body = answer.json()
        return age, body["probability"], body["prediction_id"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, list(range(40, 60)) * 2))
    by_age = {age: {p for a, p, _ in answers if a == age} for age, _, _ in answers}
    assert all(max(found) - min(found) < 1e-6 for found in by_age.values())
    assert len({round(min(found), 9) for found in by_age.values()}) == 20
    log = served.log()
    assert all(log.get(prediction_id) for _, _, prediction_id in answers)


def test_problems_keep_their_shape_behind_the_ingress(served: Served) -> None:
    broken = served.client.post("/v1/predictions", files={"dwi": ("dwi.nii.gz", b"nothing")})
    for answer, status in (
        (broken, 422),
        (served.client.get("/nowhere"), 404),
        (served.client.delete("/v1/model"), 405),
        (served.client.post("/v1/predictions", content=b"x", headers={"content-type": "text/plain"}), 415),
    ):
        assert answer.status_code == status and answer.json()["status"] == status
        assert answer.headers["content-type"] == "application/problem+json"


def test_metrics_count_the_requests_of_every_replica(served: Served) -> None:
    def counted() -> float:
        lines = served.client.get("/metrics").text.splitlines()
        name = 'willis_requests_total{method="GET",route="/v1/model",status="200"}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    before = counted()
    for _ in range(12):
        assert served.client.get("/v1/model").is_success
    assert {counted() for _ in range(4)} == {before + 12}


def test_an_outcome_reaches_the_window_of_the_monitor(served: Served) -> None:
    prediction_id = served.predict().json()["prediction_id"]
    told = served.client.post("/v1/outcomes", json={"prediction_id": prediction_id, "mrs_90d": 5})
    assert told.json()["result"] == "recorded"
    window = served.log().window().set_index("prediction_id")
    assert (
        window.loc[prediction_id, "poor_outcome"] == 1 and window.loc[prediction_id, "f_laterality"] == "left"
    )


def test_a_failed_deployment_says_why_and_the_old_version_goes_on(served: Served, tmp_path: Path) -> None:
    unsaid = served.settings.model_copy(update={"secrets_dir": None})
    params = PARAMS.model_copy(update={"max_batch": 7})
    with pytest.raises(RayError, match="WILLIS_PSEUDONYM_KEY was set where"):
        deploy(None, params, unsaid, SMALL, ReportParams())
    assert served.predict().status_code == 201


def test_a_new_version_replaces_the_old_one_without_a_dropped_request(served: Served) -> None:
    newer = small_bundle(served.root / "newer", seed=1)
    publish(newer, served.settings)
    stop, answers = threading.Event(), list[httpx.Response]()

    def keep_asking() -> None:
        with httpx.Client(base_url=served.settings.endpoint_url, timeout=60) as client:
            while not stop.is_set():
                answers.append(client.post("/v1/predictions", json={"clinical": CLINICAL}))
                time.sleep(0.05)

    callers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        deployment = deploy(None, PARAMS, served.settings, SMALL, ReportParams())
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert deployment.version == newer.version
    assert {answer.status_code for answer in answers} == {201}
    assert answers[0].json()["bundle_version"] == served.bundle.version
    assert served.client.get("/v1/model").json()["bundle_version"] == newer.version
    log = served.log()
    assert all(log.get(answer.json()["prediction_id"]) for answer in answers)


def test_a_replica_that_is_killed_is_replaced_and_nothing_acknowledged_is_lost(served: Served) -> None:
    acknowledged = [served.predict().json()["prediction_id"] for _ in range(3)]
    os.kill(_a_replica(served.settings.ray_dashboard_url), signal.SIGKILL)
    deadline = time.monotonic() + 120
    good = 0
    while good < 10 and time.monotonic() < deadline:
        good = good + 1 if _answered(served) else 0
    assert good == 10
    log = served.log()
    assert all(log.get(prediction_id) for prediction_id in acknowledged)


def _answered(served: Served) -> bool:
    """Whether a request got its prediction; one that was with the killed replica ends without an answer."""
    try:
        return served.predict().status_code == 201
    except httpx.TransportError:
        return False


def _a_replica(dashboard_url: str) -> int:
    """The process of one ingress replica of this cluster."""
    details = httpx.get(f"{dashboard_url}/api/serve/applications/", timeout=30).json()
    replicas = details["applications"]["willis"]["deployments"]["Ingress"]["replicas"]
    return next(int(replica["pid"]) for replica in replicas if replica["state"] == "RUNNING")


def test_another_port_than_serves_is_refused_with_what_to_do(served: Served) -> None:
    moved = served.settings.model_copy(update={"serve_bind": "127.0.0.1:1"})
    with pytest.raises(RayError, match="listens on 127.0.0.1"):
        deploy(None, PARAMS, moved, SMALL, ReportParams())


def test_an_open_address_without_keys_is_refused(served: Served) -> None:
    opened = served.settings.model_copy(update={"serve_bind": "0.0.0.0:8000"})
    with pytest.raises(SettingsError, match="WILLIS_API_KEYS"):
        deploy(None, PARAMS, opened, SMALL, ReportParams())


def test_a_dashboard_that_does_not_answer_is_named(served: Served) -> None:
    nowhere = served.settings.model_copy(update={"ray_dashboard_url": "http://127.0.0.1:9"})
    with pytest.raises(RayError, match=r"127\.0\.0\.1:9 does not answer"):
        deploy(None, PARAMS, nowhere, SMALL, ReportParams())
