"""Ray's dashboard as `deploy` uses it: the Serve REST interface and the log reader."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from willis.errors import RayError

_APPLICATIONS = "/api/serve/applications/"
_TIMEOUT_S = 30
_LOG_LINES = 25
_RETRY_S = 2


class _ServeNotReadyError(RayError):
    """Serve's own actors did not come up in time; a second try finds them up."""


@dataclass(frozen=True)
class ActorLog:
    """Where one replica, or the ingress of one node, writes."""

    node_id: str
    path: str
    state: str


@dataclass(frozen=True)
class Application:
    """One Serve application as the controller sees it."""

    name: str
    status: str
    message: str
    deployed_at: float
    config: Mapping[str, Any]
    logs: tuple[ActorLog, ...] = ()

    @property
    def is_running(self) -> bool:
        """Every replica is of the wanted version and healthy."""
        return self.status == "RUNNING"

    @property
    def has_failed(self) -> bool:
        """It did not come up, or came up and is sick."""
        return self.status in ("DEPLOY_FAILED", "UNHEALTHY")

    def is_same_as(self, before: "Application | None") -> bool:
        """True while the controller still shows the state from before a new config was put."""
        return before is not None and self.deployed_at == before.deployed_at


@dataclass(frozen=True)
class ServeState:
    """What Serve runs, and where it listens; `bind` is None while it does not run at all."""

    bind: str | None
    applications: Mapping[str, Application] = field(default_factory=dict)
    ingress_logs: tuple[ActorLog, ...] = ()

    def others(self, name: str) -> list[Mapping[str, Any]]:
        """Return the configs of all applications but one: a config that omits them would remove them."""
        return [app.config for key, app in self.applications.items() if key != name and app.config]

    def check_bind(self, wanted: str, url: str) -> None:
        """Make sure that the application will listen where it is expected.

        Raises:
            RayError: Serve runs already and listens elsewhere, or something else has the port.
        """
        if self.bind is not None and self.bind != wanted:
            raise RayError(
                f"Serve runs already and listens on {self.bind}, WILLIS_SERVE_BIND is {wanted}; Serve cannot "
                "move: set WILLIS_SERVE_BIND to that, or end Serve (`serve shutdown`) and deploy again"
            )
        if self.bind is None and _something_answers(url):
            raise RayError(
                f"something else answers at {url} already, so the port is in use; end it, or choose another "
                "port in WILLIS_SERVE_BIND and WILLIS_ENDPOINT_URL"
            )


class Dashboard:
    """A client of one dashboard.

    Args:
        url: as in `Settings.ray_dashboard_url`.
        token: as in `Settings.ray_auth_token`.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def state(self) -> ServeState:
        """Ask what Serve runs.

        Raises:
            RayError: the dashboard does not answer.
        """
        details = self._call("GET", _APPLICATIONS).json()
        http = details.get("http_options") if details.get("proxies") or details.get("applications") else None
        bind = f"{http['host']}:{http['port']}" if http else None
        found = details.get("applications", {})
        applications = {name: _application(name, item) for name, item in found.items()}
        return ServeState(bind, applications, _ingress_logs(details.get("proxies", {}).values()))

    def put(self, config: Mapping[str, Any], within_s: float) -> None:
        """Give Serve its whole config; starting Serve can fail on a busy machine, and is tried again.

        Raises:
            RayError: the dashboard does not answer, or refuses the config; its reason is shown.
        """
        deadline = time.monotonic() + within_s
        while True:
            try:
                self._call("PUT", _APPLICATIONS, json=config)
                return
            except _ServeNotReadyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_S)

    def log_tail(self, logs: Iterable[ActorLog]) -> str:
        """Return the end of the log that most likely shows what went wrong, or nothing."""
        sick_first = sorted(logs, key=lambda log: log.state == "RUNNING")
        for log in sick_first:
            query = {"node_id": log.node_id, "filename": log.path.lstrip("/"), "lines": str(_LOG_LINES)}
            try:
                answer = httpx.get(
                    f"{self.url}/api/v0/logs/file", params=query, headers=self._headers, timeout=_TIMEOUT_S
                )
            except httpx.HTTPError:
                continue
            if answer.is_success and answer.text.strip():
                return f"\nLast lines of {log.path}:\n{answer.text.strip()}"
        return ""

    def answering_version(self, endpoint_url: str) -> str | None:
        """Return the bundle version that answers at the endpoint, None while nothing does.

        Asked by the status page, which needs no key.
        """
        try:
            answer = httpx.get(f"{endpoint_url.rstrip('/')}/healthz", timeout=_TIMEOUT_S)
            version = answer.json().get("bundle_version") if answer.is_success else None
        except (httpx.HTTPError, ValueError, AttributeError):
            return None
        return str(version) if version else None

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = httpx.request(
                method, f"{self.url}{path}", headers=self._headers, timeout=_TIMEOUT_S, **options
            )
        except httpx.HTTPError as error:
            raise RayError(
                f"Ray's dashboard at {self.url} does not answer: {error}; start Ray, or set "
                "WILLIS_RAY_DASHBOARD_URL"
            ) from None
        if answer.is_success:
            return answer
        reason = _last_words(answer.text)
        kind = _ServeNotReadyError if answer.is_server_error else RayError
        raise kind(f"Ray's dashboard at {self.url} refused: {answer.status_code} {reason}")


def _application(name: str, item: Mapping[str, Any]) -> Application:
    deployments = item.get("deployments", {})
    messages = [deployment["message"] for deployment in deployments.values() if deployment.get("message")]
    replicas = [replica for deployment in deployments.values() for replica in deployment.get("replicas", ())]
    return Application(
        name=name,
        status=item["status"],
        message="\n".join([item["message"], *messages] if item.get("message") else messages),
        deployed_at=float(item.get("last_deployed_time_s", 0)),
        config=item.get("deployed_app_config") or {},
        logs=tuple(
            ActorLog(replica["node_id"], replica["log_file_path"], str(replica.get("state")))
            for replica in replicas
            if replica.get("node_id") and replica.get("log_file_path")
        ),
    )


def _ingress_logs(proxies: Iterable[Mapping[str, Any]]) -> tuple[ActorLog, ...]:
    """The dashboard names the log of an ingress that came up; that of one that did not has the same name."""
    return tuple(
        ActorLog(proxy["node_id"], f"/serve/proxy_{proxy['node_ip']}.log", str(proxy.get("status")))
        for proxy in proxies
        if proxy.get("node_id") and proxy.get("node_ip")
    )


def _last_words(text: str) -> str:
    """The sentence at the end of a traceback."""
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    return " ".join(lines[-6:])[-600:]


def _something_answers(url: str) -> bool:
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=2):
            return True
    except OSError:
        return False
