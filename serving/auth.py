"""Who may call: holders of an API key, or, where no key is configured, callers on this machine alone."""

import hmac
from ipaddress import ip_address

from starlette.requests import HTTPConnection

from serving.problems import FORBIDDEN, UNAUTHORISED, ProblemError

OPEN_PATHS = frozenset({"/healthz", "/openapi.json"})
"""Load balancers and code generators come without a key; neither path tells anything about patients."""


class ApiKeys:
    """The configured keys.

    Args:
        configured: comma-separated keys (`WILLIS_API_KEYS`), or None.
    """

    def __init__(self, configured: str | None) -> None:
        keys = [key.strip() for key in (configured or "").split(",")]
        self._keys = tuple(key.encode() for key in keys if key)

    def check(self, connection: HTTPConnection) -> None:
        """Let the caller pass, or not.

        Raises:
            ProblemError: unauthorised, or not on this machine while no key is configured.
        """
        if connection.scope["path"] in OPEN_PATHS:
            return
        if not self._keys:
            _only_loopback(connection)
        elif not self._holds(_bearer(connection)):
            raise ProblemError(
                UNAUTHORISED,
                "send the header `Authorization: Bearer KEY` with a key that the operator gave you",
            )

    def _holds(self, given: bytes) -> bool:
        # Every key is compared, each in constant time: neither how much of a key is right nor which one it
        # is shows in the time taken.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return any(matches)


def is_loopback(host: str) -> bool:
    """True when an address is reachable from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bearer(connection: HTTPConnection) -> bytes:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" else b""


def _only_loopback(connection: HTTPConnection) -> None:
    # Behind the ingress the peer is the ingress itself, on this machine; `deploy` refuses to open it to
    # others while no key is set. This check holds for a caller who reaches a replica's own port.
    peer = connection.client.host if connection.client else ""
    if not is_loopback(peer):
        raise ProblemError(
            FORBIDDEN, "this endpoint has no API keys and serves its own machine alone (WILLIS_API_KEYS)"
        )
