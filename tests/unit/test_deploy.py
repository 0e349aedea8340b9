"""What `deploy` tells Ray, and what it refuses before it tells anything."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from serving.config import ServeConfig
from serving.environment import free_ports
from tests.served import SMALL, publish, small_bundle, test_settings
from willis.errors import InputError, ParamsError, RayError, SettingsError
from willis.models.preprocessing import Preprocessing
from willis.params import DeployParams, IngestParams, ReportParams
from willis.serve_dashboard import Dashboard
from willis.settings import DEMO_PSEUDONYM_KEY, Settings
from willis.steps.deploy import application_config, deploy, environment_of, secrets_of


def test_no_secret_is_in_the_config_that_the_dashboard_shows(tmp_path: Path) -> None:
    settings = test_settings(
        tmp_path, api_keys="key-one", s3_secret_key="s3-secret", pseudonym_key="hash-key",
        database_url="postgresql+psycopg://willis:hunter2@db/willis", feast_online="redis://:pw@redis:6379",
    )  # fmt: skip
    config = application_config("0" * 16, DeployParams(), settings, SMALL, ReportParams())
    shown = json.dumps(config)
    for secret in ("key-one", "s3-secret", "hash-key", "hunter2", ":pw@"):
        assert secret not in shown
    assert set(secrets_of(settings)) == {
        "api_keys", "pseudonym_key", "s3_secret_key", "database_url", "feast_online"
    }  # fmt: skip
    assert ServeConfig.model_validate(config["args"]).secrets == secrets_of(settings)


def test_folders_travel_as_absolute_paths_because_replicas_start_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = environment_of(
        Settings(
            registry="build/registry", object_store="s3://bucket/objects", database_url="sqlite:///a/b.db"
        )
    )
    assert variables["WILLIS_REGISTRY"] == str(tmp_path / "build/registry")
    assert variables["WILLIS_OBJECT_STORE"] == "s3://bucket/objects"
    assert variables["WILLIS_DATABASE_URL"] == f"sqlite:///{tmp_path}/a/b.db"
    assert "WILLIS_RAY_DASHBOARD_URL" not in variables


def test_a_replica_refuses_to_start_without_a_secret_that_deploy_had() -> None:
    config = ServeConfig(version="x", secrets=("api_keys",))
    with pytest.raises(SettingsError, match="WILLIS_API_KEYS was set where"):
        config.check_secrets(Settings())
    config.check_secrets(Settings(api_keys="k"))


def test_without_a_champion_the_message_says_what_the_registry_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="champion"):
        deploy(None, DeployParams(), test_settings(tmp_path), SMALL, ReportParams())


def test_a_promotion_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="willis promote"):
        deploy(tmp_path / "none", DeployParams(), test_settings(tmp_path), SMALL, ReportParams())


def test_a_bundle_of_other_facts_is_refused(tmp_path: Path) -> None:
    settings = test_settings(tmp_path)
    publish(small_bundle(tmp_path / "two", fact="load_mcafL"), settings)
    with pytest.raises(SettingsError, match="load_mcafL.*WILLIS_ATLAS"):
        deploy(None, DeployParams(), settings, SMALL, ReportParams())


def test_another_atlas_than_that_of_the_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "atlas.nii.gz").write_bytes(b"regions")
    settings = test_settings(tmp_path, atlas=tmp_path / "atlas.nii.gz")
    publish(small_bundle(tmp_path / "one"), settings)
    with pytest.raises(SettingsError, match="measured by Willis's approximation: unset it"):
        deploy(None, DeployParams(), settings, SMALL, ReportParams())


def test_an_open_address_without_keys_is_refused(tmp_path: Path) -> None:
    settings = test_settings(tmp_path, serve_bind="0.0.0.0:8000")
    publish(small_bundle(tmp_path / "one"), settings)
    with pytest.raises(SettingsError, match="WILLIS_API_KEYS"):
        deploy(None, DeployParams(), settings, SMALL, ReportParams())


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "10.1.2.3:80"])
def test_an_open_address_under_the_public_pseudonym_key_is_refused(tmp_path: Path, bind: str) -> None:
    settings = test_settings(tmp_path, serve_bind=bind, api_keys="k", pseudonym_key=DEMO_PSEUDONYM_KEY)
    publish(small_bundle(tmp_path / "one"), settings)
    with pytest.raises(SettingsError, match=r"other hosts reach; set WILLIS_PSEUDONYM_KEY to a secret"):
        deploy(None, DeployParams(), settings, SMALL, ReportParams())


@pytest.mark.parametrize("bind", ["127.0.0.1:8000", "localhost:8000"])
def test_the_public_pseudonym_key_may_serve_this_machine(tmp_path: Path, bind: str) -> None:
    settings = test_settings(
        tmp_path, serve_bind=bind, pseudonym_key=DEMO_PSEUDONYM_KEY, ray_dashboard_url="http://127.0.0.1:9"
    )
    publish(small_bundle(tmp_path / "one"), settings)
    with pytest.raises(RayError, match="does not answer"):
        deploy(None, DeployParams(), settings, SMALL, ReportParams())


class _Peer(BaseHTTPRequestHandler):
    """A dashboard that answers as the test says; it keeps what was put."""

    state: dict[str, Any] = {}
    logs: dict[str, str] = {}
    refusals: list[tuple[int, str]] = []
    put: list[Any] = []

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/api/v0/logs/file":
            (name,) = parse_qs(asked.query)["filename"]
            self._answer(*((200, self.logs[name]) if name in self.logs else (404, "")))
        else:
            self._answer(200, json.dumps(self.state))

    def do_PUT(self) -> None:
        self.put.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._answer(*(self.refusals.pop(0) if self.refusals else (200, "")))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[tuple[type[_Peer], str]]:
    handler = type("Peer", (_Peer,), {"state": {}, "logs": {}, "refusals": [], "put": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_other_applications_of_the_cluster_stay(peer: tuple[type[_Peer], str]) -> None:
    handler, url = peer
    other = {"name": "other", "import_path": "a:b"}
    handler.state = {
        "proxies": {"n": {}},
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": {
            "other": {"status": "RUNNING", "message": "", "deployed_app_config": other},
            "willis": {"status": "RUNNING", "message": "", "deployed_app_config": {"name": "willis"}},
        },
    }
    state = Dashboard(url).state()
    assert state.others("willis") == [other] and state.bind == "127.0.0.1:8000"
    state.check_bind("127.0.0.1:8000", url)
    with pytest.raises(RayError, match="listens on 127.0.0.1:8000"):
        state.check_bind("127.0.0.1:9000", url)


OTHERS = {
    "sequences": ("dwi",),
    "planes": ("flair",),
    "spacing_mm": (2.0, 2.0, 5.0),
    "shape": (80, 96, 40),
    "adc_below_mm2_s": 500e-6,
    "min_lesion_ml": 1.0,
    "min_registration_quality": 0.5,
}
"""One value per field that no bundle here was made with."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_bundle_is_served_with_its_own_preprocessing_and_what_differs_is_told(
    peer: tuple[type[_Peer], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    handler, url = peer
    bind = f"127.0.0.1:{free_ports(1)[0]}"
    settings = test_settings(tmp_path, ray_dashboard_url=url, serve_bind=bind, endpoint_url=f"http://{bind}")
    publish(small_bundle(tmp_path / "one"), settings)
    given = SMALL.model_copy(update={name: OTHERS[name], "max_volume_mb": 64.0})
    with pytest.raises(RayError, match="does not list the application"):
        deploy(None, DeployParams(healthy_within_s=0.01), settings, given, ReportParams())
    served = ServeConfig.model_validate(handler.put[0]["applications"][0]["args"]).ingest
    assert served == SMALL.model_copy(update={"max_volume_mb": 64.0})
    assert capsys.readouterr().err.count(f": ingest.{name} is ") == 1


def test_every_field_of_the_preprocessing_is_tried() -> None:
    assert {*OTHERS, "atlas"} == set(Preprocessing.model_fields)
    volumes_and_facts_stay = {
        "max_volume_mb", "studies_per_shard", "splits", "outcome_column", "require_outcome", "columns",
        "ignored_columns", "num_workers",
    }  # fmt: skip
    assert set(IngestParams.model_fields) == {*OTHERS, *volumes_and_facts_stay}


def test_a_port_in_use_is_told_before_anything_is_put(peer: tuple[type[_Peer], str]) -> None:
    _, url = peer
    state = Dashboard(url).state()
    assert state.bind is None
    with pytest.raises(RayError, match="port is in use"):
        state.check_bind(url.removeprefix("http://"), url)


def test_an_ingress_that_does_not_listen_is_told_by_its_own_log(
    peer: tuple[type[_Peer], str], tmp_path: Path
) -> None:
    handler, url = peer
    handler.state = {
        "proxies": {"n": {"node_id": "n", "node_ip": "10.0.0.2", "status": "STARTING"}},
        "http_options": {"host": "127.0.0.1", "port": 9},
        "applications": {"willis": {"status": "RUNNING", "message": "", "last_deployed_time_s": 1.0}},
    }
    handler.logs = {"serve/proxy_10.0.0.2.log": "cannot bind socket (Address already in use)"}
    settings = test_settings(
        tmp_path, ray_dashboard_url=url, serve_bind="127.0.0.1:9", endpoint_url="http://127.0.0.1:9"
    )
    publish(small_bundle(tmp_path / "one"), settings)
    with pytest.raises(RayError, match=r"RUNNING after 0.01 s, and nothing(.|\n)*already in use"):
        deploy(None, DeployParams(healthy_within_s=0.01), settings, SMALL, ReportParams())


def test_a_serve_that_is_slow_to_start_is_asked_again_and_a_bad_config_is_not(
    peer: tuple[type[_Peer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("willis.serve_dashboard._RETRY_S", 0.01)
    handler, url = peer
    trace = "Traceback (most recent call last):\n  File x\nActorDiedError: the ingress was not ready"
    handler.refusals = [(500, trace), (500, trace)]
    Dashboard(url).put({"applications": []}, within_s=30)
    assert len(handler.put) == 3
    handler.refusals = [(400, "import_path is missing")]
    with pytest.raises(RayError, match="400 import_path is missing"):
        Dashboard(url).put({"applications": []}, within_s=30)
    assert len(handler.put) == 4


def test_something_else_than_ray_is_not_taken_for_it(peer: tuple[type[_Peer], str]) -> None:
    _, url = peer
    assert Dashboard(url).answering_version(url) is None
    with pytest.raises(RayError, match="does not answer"):
        Dashboard("http://127.0.0.1:9").state()
