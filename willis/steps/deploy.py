"""The step `deploy`: put the champion's Serve config to Ray, and wait until that version answers."""

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import make_url

from willis.errors import ParamsError, RayError, SettingsError
from willis.params import DeployParams, IngestParams, ReportParams
from willis.serve_dashboard import ActorLog, Application, Dashboard
from willis.settings import DEMO_PSEUDONYM_KEY, Settings
from willis.stores.registry import Registry

if TYPE_CHECKING:
    from willis.models.bundle import Bundle

IMPORT_PATH = "serving.app:build"
SECRETS = ("api_keys", "pseudonym_key", "report_api_key", "s3_access_key", "s3_secret_key")
_LOCATIONS = ("registry", "object_store")
_OF_THE_CALLER = (
    "ray_address", "ray_dashboard_url", "ray_auth_token", "endpoint_url", "serve_bind", "dvc_remote",
    "data_dir", "kfp_token",
)  # fmt: skip
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLL_S = 0.5


class Deployment(BaseModel):
    """What answers now, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    version: str
    app_name: str
    num_replicas: int
    own_preprocessing: tuple[str, ...] = ()
    """Where params.yaml differs from what the bundle learned from; the bundle's own is served."""
    seconds: float


def deploy(
    promotion: Path | None,
    params: DeployParams,
    settings: Settings,
    ingest: IngestParams,
    report: ReportParams,
) -> Deployment:
    """Deploy the bundle behind the alias and wait until it answers.

    A running application is replaced replica by replica; requests go on being answered by the old version
    until the new one is up. Other applications of the cluster stay as they are.

    Args:
        promotion: output folder of `promote`, None outside a pipeline. It orders the steps: what is deployed
            is what the alias points at, moved or not.
        params: the section `deploy`.
        settings: where Ray, registry, stores and database are.
        ingest: limits on requests' volumes; how they are prepared is the bundle's own, and what differs here
            is told.
        report: who writes reports that a caller does not send.

    Raises:
        InputError: the registry holds no such alias.
        ParamsError: the promotion is not there.
        SettingsError: the endpoint would be open to other hosts without API keys or under the public
            pseudonym key, or the bundle's facts need another atlas.
        RayError: Ray does not answer, the application does not come up, or another version answers; the
            message ends with the replica's log.
    """
    started = time.monotonic()
    if promotion is not None and not promotion.exists():
        raise ParamsError(f"{promotion} does not exist; run `willis promote` first")
    bundle = Registry.open(settings).fetch(params.alias)
    preprocessing = bundle.preprocessing()
    preprocessing.check_atlas(settings.atlas)
    _check_facts(bundle, settings)
    _check_open(settings)
    token = settings.ray_auth_token
    dashboard = Dashboard(settings.ray_dashboard_url, token.get_secret_value() if token else None)
    running = dashboard.state()
    running.check_bind(settings.serve_bind, settings.endpoint_url)
    differences = preprocessing.differences(ingest)
    _tell(bundle.version, differences)
    config = application_config(bundle.version, params, settings, preprocessing.applied_to(ingest), report)
    before = running.applications.get(params.app_name)
    host, _, port = settings.serve_bind.rpartition(":")
    http = {"host": host, "port": int(port), "keep_alive_timeout_s": 90}
    dashboard.put(
        {"http_options": http, "applications": [*running.others(params.app_name), config]},
        params.healthy_within_s,
    )
    _wait_until_up(dashboard, before, bundle.version, params, settings.endpoint_url)
    return Deployment(
        url=settings.endpoint_url,
        version=bundle.version,
        app_name=params.app_name,
        num_replicas=params.num_replicas,
        own_preprocessing=differences,
        seconds=round(time.monotonic() - started, 2),
    )


def application_config(
    version: str, params: DeployParams, settings: Settings, ingest: IngestParams, report: ReportParams
) -> dict[str, object]:
    """Build the application's part of the Serve config (serving/serve.yaml shows one)."""
    return {
        "name": params.app_name,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "runtime_env": {"env_vars": environment_of(settings)},
        "args": {
            "version": version,
            "deploy": params.model_dump(mode="json"),
            "ingest": ingest.model_dump(mode="json"),
            "report": report.model_dump(mode="json"),
            "secrets": list(secrets_of(settings)),
        },
    }


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the replicas' environment: every setting that is no secret, folders as absolute paths."""
    hidden = {*SECRETS, *secrets_of(settings), *_OF_THE_CALLER}
    values = {
        f"WILLIS_{name.upper()}": _portable(name, settings)
        for name in type(settings).model_fields
        if name not in hidden and getattr(settings, name) is not None
    }
    return values | {
        "PROMETHEUS_MULTIPROC_DIR": str(settings.metrics_dir.resolve()),
        "OMP_NUM_THREADS": "1",  # replicas share the cores; more threads each would only wait for one another
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return the settings that were given here and must not be seen on Ray's dashboard.

    They reach a replica by Ray's own environment or by files of WILLIS_SECRETS_DIR; it refuses to start
    without them.
    """
    names = [name for name in SECRETS if name in settings.model_fields_set]
    if make_url(settings.database_url.get_secret_value()).password:
        names.append("database_url")
    if "@" in settings.feast_online:
        names.append("feast_online")
    return tuple(names)


def _portable(name: str, settings: Settings) -> str:
    value = getattr(settings, name)
    if name == "database_url":
        url = make_url(value.get_secret_value())
        if url.drivername.startswith("sqlite") and url.database:
            url = url.set(database=str(Path(url.database).resolve()))
        return url.render_as_string(hide_password=False)
    is_folder = isinstance(value, Path) or (name in _LOCATIONS and "://" not in value)
    return str(Path(value).resolve()) if is_folder else str(value)


def _tell(version: str, differences: tuple[str, ...]) -> None:
    from rich.console import Console

    for difference in differences:
        Console(stderr=True).print(f"bundle {version}: {difference}", highlight=False, soft_wrap=True)


def _check_facts(bundle: "Bundle", settings: Settings) -> None:
    """A fact that training saw and requests never get would silently count as unknown."""
    from willis.casework import measured_columns

    contract = json.loads((bundle.folder / "contract.json").read_text())
    wanted = {column["name"].removeprefix("f_") for column in contract.get("fact_columns", ())}
    lacking = sorted(wanted - measured_columns(settings))
    if lacking:
        raise SettingsError(
            f"bundle {bundle.version} reads {', '.join(lacking[:4])} ({len(lacking)} facts) that are not "
            "measured here; set WILLIS_ATLAS to the arterial atlas of its cohort (derivatives/atlas/*.nii.gz)"
        )


def _check_open(settings: Settings) -> None:
    if settings.serve_bind.rpartition(":")[0] in _LOOPBACK:
        return
    lacking = []
    if settings.api_keys is None:
        lacking.append("set WILLIS_API_KEYS")
    if settings.pseudonym_key.get_secret_value() == DEMO_PSEUDONYM_KEY:
        lacking.append("set WILLIS_PSEUDONYM_KEY to a secret (it is the public default)")
    if lacking:
        raise SettingsError(
            f"WILLIS_SERVE_BIND is {settings.serve_bind!r}, which other hosts reach; "
            f"{' and '.join(lacking)}, or bind 127.0.0.1 (environment)"
        )


def _wait_until_up(
    dashboard: Dashboard, before: Application | None, version: str, params: DeployParams, url: str
) -> None:
    from rich.console import Console

    deadline = time.monotonic() + params.healthy_within_s
    with Console(stderr=True).status(f"Deploying bundle {version} ..."):
        while True:
            state = dashboard.state()
            application = state.applications.get(params.app_name)
            if application is not None and not application.is_same_as(before):
                if application.has_failed:
                    raise RayError(_failure(dashboard, application, "did not come up", application.logs))
                if application.is_running and dashboard.answering_version(url) == version:
                    return
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    if application is None:
        raise RayError(f"Ray at {dashboard.url} does not list the application {params.app_name!r}")
    answer = dashboard.answering_version(url) or "nothing"
    late = f"is {application.status} after {params.healthy_within_s:g} s, and {answer} answers at {url}"
    logs = state.ingress_logs if application.is_running else application.logs
    raise RayError(_failure(dashboard, application, late, logs))


def _failure(dashboard: Dashboard, application: Application, what: str, logs: Iterable[ActorLog]) -> str:
    message = re.sub(r"\x1b\[[0-9;]*m", "", application.message) or "no message"
    return f"application {application.name!r} {what}: {message}{dashboard.log_tail(logs)}"
