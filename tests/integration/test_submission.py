"""The submission of a compiled pipeline, by kfp's own client to a host that answers as KFP does."""

import json
from pathlib import Path

import pytest
from kfp import compiler
from typer.testing import CliRunner

from infra.local.processes import free_port
from pipelines.training import graph
from tests.fixtures.kfp import EXPERIMENTS, HEALTHZ, RUNS, KfpHost
from willis.cli import app
from willis.errors import ParamsError, ServiceError
from willis.params import Params
from willis.provenance import cohort_digest
from willis.settings import Settings
from willis.submission import Submission, submit

pytestmark = pytest.mark.integration
TOKEN = "t0ken-of-the-test"
WITH_TOKEN = Settings(kfp_token=TOKEN)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kfp") / "training.yaml"
    compiler.Compiler().compile(graph(Params(), with_deploy=True), str(path))
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-1\n")
    return tmp_path


def _submit(host: KfpHost, package: Path, cohort: Path) -> Submission:
    return submit(package, host.url, str(cohort), "willis", WITH_TOKEN)


def test_the_run_carries_the_cohort_and_the_digest_of_its_files(
    kfp_host: KfpHost, package: Path, cohort: Path
) -> None:
    submission = _submit(kfp_host, package, cohort)
    sent = kfp_host.sent[RUNS]
    digest = cohort_digest(cohort)
    assert sent["runtime_config"]["parameters"] == {"cohort": str(cohort), "cohort_digest": digest}
    assert sent["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "willis-training"
    assert (sent["experiment_id"], submission.run_id, submission.cohort_digest) == ("e-1", "r-1", digest)
    assert kfp_host.asked[0] == ("GET", HEALTHZ)
    assert kfp_host.asked[-3:] == [("GET", EXPERIMENTS), ("POST", EXPERIMENTS), ("POST", RUNS)]


def test_a_cohort_that_changed_in_place_enters_the_cache_key(
    kfp_host: KfpHost, package: Path, cohort: Path
) -> None:
    before = _submit(kfp_host, package, cohort).cohort_digest
    (cohort / "participants.tsv").write_text("participant_id\nsub-1\nsub-2\n")
    assert _submit(kfp_host, package, cohort).cohort_digest != before


def test_a_cohort_that_only_the_cluster_can_read_needs_a_digest(kfp_host: KfpHost, package: Path) -> None:
    with pytest.raises(ParamsError, match="'s3://bucket/cohort', which cannot be read here.*--cohort-digest"):
        submit(package, kfp_host.url, "s3://bucket/cohort", "willis", Settings())
    assert kfp_host.asked == []
    given = submit(package, kfp_host.url, "s3://bucket/cohort", "willis", Settings(), digest="md5-1")
    assert (
        kfp_host.sent[RUNS]["runtime_config"]["parameters"]["cohort_digest"] == given.cohort_digest == "md5-1"
    )


def test_every_request_carries_the_token(kfp_host: KfpHost, package: Path, cohort: Path) -> None:
    _submit(kfp_host, package, cohort)
    assert kfp_host.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("place", [("GET", HEALTHZ), ("GET", EXPERIMENTS), ("POST", RUNS)])
def test_a_refusal_is_told_in_the_hosts_words_without_the_token(
    kfp_host: KfpHost, package: Path, cohort: Path, place: tuple[str, str]
) -> None:
    kfp_host.answers[place] = (403, {"message": f"Bearer {TOKEN} may not do that"})
    with pytest.raises(
        ServiceError, match="refused training.yaml: 403 Forbidden: .* may not do that"
    ) as caught:
        _submit(kfp_host, package, cohort)
    assert "WILLIS_KFP_TOKEN" in str(caught.value)
    assert TOKEN not in str(caught.value) and "crumb" not in str(caught.value)


def test_a_page_for_people_is_no_api(kfp_host: KfpHost, package: Path, cohort: Path) -> None:
    kfp_host.answers["GET", HEALTHZ] = (200, "<html>log in</html>")
    with pytest.raises(ServiceError, match="is that the address of a KFP API"):
        _submit(kfp_host, package, cohort)


def test_a_host_that_nobody_listens_at_is_told_at_once(package: Path, cohort: Path) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError, match=f"no KFP API answers at {host}: .*is it up there") as caught:
        submit(package, host, str(cohort), "willis", WITH_TOKEN)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("host", ["http://kfp.example.org", "kfp.example.org", "ftp://127.0.0.1", "https://"])
def test_a_remote_host_needs_https(package: Path, cohort: Path, host: str) -> None:
    with pytest.raises(ParamsError, match=f"--host is '{host}'; it must be https"):
        submit(package, host, str(cohort), "willis", WITH_TOKEN)


def test_a_password_in_the_address_is_refused_and_not_repeated(package: Path, cohort: Path) -> None:
    with pytest.raises(ParamsError, match="WILLIS_KFP_TOKEN") as caught:
        submit(package, "https://me:s3cret@kfp.example.org", str(cohort), "willis", Settings())
    assert "s3cret" not in str(caught.value)


def test_a_package_that_was_not_compiled_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="write it with `python -m pipelines.training --out"):
        submit(tmp_path / "absent.yaml", "http://127.0.0.1:1", str(tmp_path), "willis", Settings())


def test_the_command_prints_its_answer_alone(kfp_host: KfpHost, package: Path, cohort: Path) -> None:
    words = [
        "pipeline",
        "submit",
        str(package),
        "--host",
        f"{kfp_host.url}/",
        "--cohort",
        str(cohort),
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert json.loads(done.output)["url"] == f"{kfp_host.url}/#/runs/details/r-1"
