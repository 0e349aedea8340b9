"""Submit a compiled pipeline to a Kubeflow Pipelines host (the library's only importer of kfp)."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from willis.errors import ParamsError, ServiceError
from willis.provenance import cohort_digest
from willis.settings import Settings

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
ANSWER_WITHIN_S = 20
MAX_REASON = 300


class Submission(BaseModel):
    """A run that the host has accepted."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    url: str
    cohort_digest: str


def submit(
    package: Path, host: str, cohort: str, experiment: str, settings: Settings, digest: str | None = None
) -> Submission:
    """Create a run from a compiled package.

    Args:
        package: YAML that `python -m pipelines.training` wrote.
        host: address of the KFP API; https unless it is loopback.
        cohort: the pipeline's `cohort` argument, a path or URI that the cluster can read.
        experiment: name under which the host files the run.
        settings: `kfp_token`, where the host asks for one.
        digest: a word that changes with the cohort's files, for the host's cache; None computes it, where
            the cohort can be read here under the same path.

    Raises:
        ParamsError: no such package, a remote host without https, or a cohort whose changes nobody would see.
        ServiceError: the host does not answer or refuses the run.
    """
    if not package.is_file():
        raise ParamsError(
            f"{package} does not exist; write it with `python -m pipelines.training --out {package}`"
        )
    host = _checked(host)
    arguments = {"cohort": cohort, "cohort_digest": digest or _digest_here(cohort)}
    token = settings.kfp_token.get_secret_value() if settings.kfp_token else None
    with _as_service_error(host, package, token):
        _require_api(host, token)
        run_id = _create_run(host, token, package, arguments, experiment)
    url = f"{host}/#/runs/details/{run_id}"
    return Submission(run_id=run_id, url=url, cohort_digest=arguments["cohort_digest"])


def _checked(host: str) -> str:
    address = urlsplit(host)
    if "@" in address.netloc:
        raise ParamsError("--host holds a user or a password; leave them out and set WILLIS_KFP_TOKEN")
    plain = address.scheme == "http" and address.hostname in LOOPBACK
    if not address.hostname or not (address.scheme == "https" or plain):
        raise ParamsError(
            f"--host is {host!r}; it must be https://..., or http://... where the host is loopback"
        )
    return host.rstrip("/")


def _digest_here(cohort: str) -> str:
    if Path(cohort).is_dir():
        return cohort_digest(Path(cohort))
    raise ParamsError(
        f"--cohort is {cohort!r}, which cannot be read here, so the host's cache would not see its files "
        "change; pass --cohort-digest WORD, a word that changes with them, as the md5 of its version.json"
    )


def _require_api(host: str, token: str | None) -> None:
    """Ask once whether the API is up; kfp's own client asks five times, 5 s apart, with tracebacks."""
    import kfp_server_api  # type: ignore[import-untyped]

    config = kfp_server_api.Configuration(host=host)
    config.retries = False
    if token:
        config.api_key, config.api_key_prefix = {"authorization": token}, {"authorization": "Bearer"}
    api = kfp_server_api.HealthzServiceApi(kfp_server_api.ApiClient(config))
    answer = api.healthz_service_get_healthz_with_http_info(_request_timeout=ANSWER_WITHIN_S)
    kind = answer[2].get("Content-Type", "")
    if "json" not in kind:
        raise TypeError(f"its /apis/v2beta1/healthz is {kind or 'of no type'}, not JSON")


def _create_run(
    host: str, token: str | None, package: Path, arguments: dict[str, str], experiment: str
) -> str:
    from kfp import Client

    # kfp prints links and warns of old servers; stdout is for our own answer.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client(host=host, existing_token=token)
        run = client.create_run_from_pipeline_package(
            str(package), arguments=arguments, experiment_name=experiment
        )
    return str(run.run_id)


@contextlib.contextmanager
def _as_service_error(host: str, package: Path, token: str | None) -> Iterator[None]:
    """kfp raises urllib3's, OpenAPI's and plain errors alike; a host's words may repeat the token."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except HTTPError as error:
        raise ServiceError(
            _hidden(f"no KFP API answers at {host}: {error}; is it up there?", token)
        ) from None
    except ApiException as error:
        todo = "; set WILLIS_KFP_TOKEN to a token that may create runs" if error.status in (401, 403) else ""
        text = f"{host} refused {package.name}: {error.status} {error.reason}: {_words(error.body)}{todo}"
        raise ServiceError(_hidden(text, token)) from None
    except Exception as error:
        text = f"{host} did not accept {package.name}: {error}; is that the address of a KFP API?"
        raise ServiceError(_hidden(text, token)) from None


def _words(body: str | bytes | None) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or "no reason given"
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(text)
        text = found.get("message") or found.get("error") or text
    return str(text)[:MAX_REASON]


def _hidden(text: str, token: str | None) -> str:
    return text.replace(token, "***") if token else text
