"""What every request passes first: an id, the key, the size of the body, the deadline, and the last resort.

A plain ASGI layer around the application, so that it also holds for requests that no route answers.
"""

import asyncio
import logging
import re
import time
import uuid

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import ApiKeys
from serving.metrics import Metrics
from serving.problems import DEADLINE, INTERNAL, TOO_LARGE, ProblemError, problem_response

log = logging.getLogger("willis.serving")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_MIB = 1024 * 1024


class Gate:
    """The outermost layer.

    Args:
        app: the application behind it.
        keys: who may call.
        metrics: where requests are counted.
        max_body_mb: largest request body, in MiB.
        deadline_s: longest time from first byte to answer.
    """

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeys, metrics: Metrics, max_body_mb: float, deadline_s: float
    ) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_body, self._deadline_s = int(max_body_mb * _MIB), deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"], state["started"] = _request_id(scope), time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._max_body)
        try:
            await self._pass(scope, exchange)
        finally:
            self._metrics.request(scope, exchange.status, time.perf_counter() - state["started"])

    async def _pass(self, scope: Scope, exchange: "_Exchange") -> None:
        try:
            self._keys.check(HTTPConnection(scope))
            exchange.check_declared_size()
            async with asyncio.timeout(self._deadline_s):
                await self._app(scope, exchange.receive, exchange.send)
                exchange.check_received_size()
        except ProblemError as problem:
            await exchange.end_with(problem)
        except TimeoutError:
            await exchange.end_with(
                ProblemError(DEADLINE, f"no answer within {self._deadline_s:g} s; try again later")
            )
        except Exception as error:
            # The traceback's frames name code, never values: what a caller sent stays out of the log.
            log.error("%s: %s", scope["state"]["request_id"], _places(error))
            await exchange.end_with(
                ProblemError(INTERNAL, "an error that was not foreseen; the operator's log has its place")
            )


class _Exchange:
    """One request and its answer, measured and bounded."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body, self._num_received = max_body, 0
        self._started = self._over = False
        self.status = 0

    def check_declared_size(self) -> None:
        """Refuse a body by its Content-Length, before a byte of it is read."""
        declared = dict(self._scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_body:
            raise self._too_large()

    def check_received_size(self) -> None:
        """Raise again what a parser of the cut body may have swallowed."""
        if self._over:
            raise self._too_large()

    async def receive(self) -> Message:
        """Hand on a piece of the body; a body without a length is counted as it comes."""
        message = await self._receive()
        self._num_received += len(message.get("body", b""))
        if self._num_received > self._max_body:
            self._over = True
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        """Hand on a piece of the answer, with the request id in its headers."""
        if self._over:
            return  # whatever a parser made of the cut body, the answer is the one for its size
        if message["type"] == "http.response.start":
            self._started, self.status = True, message["status"]
            request_id = self._scope["state"]["request_id"].encode()
            message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
        await self._send(message)

    async def end_with(self, problem: ProblemError) -> None:
        """Answer with a problem, unless an answer has begun to leave."""
        if self._started:
            return
        self._over = False
        response = problem_response(problem.kind, problem.detail, self._scope, problem.errors)
        await response(self._scope, self._receive, self.send)

    def _too_large(self) -> ProblemError:
        return ProblemError(
            TOO_LARGE,
            f"the body is larger than {self._max_body / _MIB:g} MiB (params.yaml: deploy.max_upload_mb); "
            "send references into the object store instead of files",
        )


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _places(error: BaseException) -> str:
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(frames[-8:])}"
