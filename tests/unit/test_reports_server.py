"""What stands before a running vLLM; the server itself is in the integration tests."""

import socket
import sys
from pathlib import Path

import pytest

from infra.local.processes import free_port
from willis.errors import ReportServerError, SettingsError, StepError
from willis.params import ReportParams
from willis.reports.model_files import served_name
from willis.reports.server import serving
from willis.settings import Settings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def at(port: int, **given: object) -> Settings:
    return Settings(report_url=f"http://127.0.0.1:{port}/v1", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "http://vllm.willis:8000/v1",
        "https://127.0.0.1:8100/v1",
        "http://0.0.0.0:8100/v1",
        "http://127.0.0.1:8100",
    ],
)
def test_a_server_is_only_started_on_loopback(url: str, model: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(
            SettingsError, match=r"WILLIS_REPORT_URL .*this machine alone.*http://127.0.0.1:PORT/v1"
        ),
        serving(ReportParams(model=str(model)), Settings(report_url=url), log=tmp_path / "log"),
    ):
        pass


def test_a_taken_port_is_told_before_anything_is_started(model: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(StepError, match=f"cannot listen on port {port}.*WILLIS_REPORT_URL to another"),
            serving(ReportParams(model=str(model)), at(port), log=tmp_path / "log"),
        ):
            pass
    assert not (tmp_path / "log").exists()


def test_a_missing_environment_says_make_setup(model: Path, tmp_path: Path) -> None:
    settings = at(free_port(), vllm_python=tmp_path / "bin" / "python")
    with (
        pytest.raises(SettingsError, match="WILLIS_VLLM_PYTHON is .*bin/python.* run `make setup`"),
        serving(ReportParams(model=str(model)), settings, log=tmp_path / "log"),
    ):
        pass


def test_a_server_that_dies_is_told_with_its_last_lines(model: Path, tmp_path: Path) -> None:
    settings = at(free_port(), vllm_python=Path(sys.executable))  # this Python has no vLLM
    with (
        pytest.raises(
            ReportServerError, match=r"exit code 1 before it was up; (?s:.*)No module named 'vllm'"
        ),
        serving(ReportParams(model=str(model)), settings, log=tmp_path / "log"),
    ):
        pass


def test_other_weights_have_another_name(model: Path) -> None:
    name = served_name(str(model))
    (model / "README.md").write_text("another model card")
    assert name == served_name(str(model))
    (model / "model.safetensors").write_bytes(b"Weights")
    assert name != served_name(str(model))
    assert {name.split("@")[0], served_name(str(model)).split("@")[0]} == {"model"}


def test_a_model_that_is_no_folder_is_named_as_it_is() -> None:
    assert served_name("google/medgemma-1.5-4b-it") == "google/medgemma-1.5-4b-it"
