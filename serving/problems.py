"""The one error shape of the endpoint: problem details (RFC 9457), on every route and status.

`type` is a stable URN that programs may branch on; `detail` is the sentence for people, with value, rule and
place; `instance` is the request id, which the log of the endpoint carries too.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from willis.errors import (
    InputError,
    ReportServerError,
    ServiceError,
    SettingsError,
    StaleFeaturesError,
    WillisError,
)

log = logging.getLogger("willis.serving")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5


class FieldProblem(BaseModel):
    """One field that breaks a rule."""

    model_config = ConfigDict(extra="forbid")

    field: str = Field(description="Path of the field, as clinical.glucose_mmol_l.")
    rule: str = Field(description="What it must be.")


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="Stable name of the kind of problem, urn:willis:problem:...")
    title: str = Field(description="The kind of problem in a few words; the same for every occurrence.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="This occurrence: value, rule, place, and what to do.")
    instance: str = Field(description="Request id, for the operator's log.")
    errors: list[FieldProblem] = Field(default_factory=list, description="Fields that break a rule.")


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its name in the URN, status and title."""

    name: str
    status: int
    title: str


BAD_REQUEST = Kind("bad-request", 400, "The request cannot be read")
UNAUTHORISED = Kind("unauthorised", 401, "A valid API key is needed")
FORBIDDEN = Kind("loopback-only", 403, "Without API keys only callers on this machine are served")
NOT_FOUND = Kind("not-found", 404, "There is nothing here")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "This method is not allowed here")
CONFLICT = Kind("conflict", 409, "The request contradicts what is stored")
STALE_FEATURES = Kind("stale-features", 409, "The stored features are absent or too old")
TOO_LARGE = Kind("too-large", 413, "The request is too large")
UNSUPPORTED_MEDIA = Kind("unsupported-media-type", 415, "The content type is not accepted")
INVALID = Kind("invalid-input", 422, "The input breaks a rule")
INTERNAL = Kind("internal", 500, "The endpoint failed")
UNAVAILABLE = Kind("unavailable", 503, "Something that the endpoint needs does not answer")
BUSY = Kind("busy", 503, "The endpoint is at its limit")
DEADLINE = Kind("deadline", 504, "The deadline of the request has passed")

KINDS: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
_BY_STATUS = {
    400: BAD_REQUEST, 401: UNAUTHORISED, 403: FORBIDDEN, 404: NOT_FOUND, 405: METHOD_NOT_ALLOWED,
    409: CONFLICT, 413: TOO_LARGE, 415: UNSUPPORTED_MEDIA, 422: INVALID, 503: UNAVAILABLE, 504: DEADLINE,
}  # fmt: skip


class ProblemError(Exception):
    """A request that ends as a problem of a known kind."""

    def __init__(self, kind: Kind, detail: str, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.errors = kind, detail, tuple(errors)


def problem_response(
    kind: Kind, detail: str, scope: Scope, errors: Sequence[FieldProblem] = ()
) -> JSONResponse:
    """Build the answer for one problem.

    Args:
        kind: what kind of problem it is.
        detail: the sentence for people.
        scope: ASGI scope of the request, which carries its id.
        errors: fields that break a rule.
    """
    instance = scope.get("state", {}).get("request_id", "")
    problem = Problem(
        type=f"urn:willis:problem:{kind.name}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=f"urn:willis:request:{instance}",
        errors=list(errors),
    )
    headers = {"cache-control": "no-store"}
    if kind.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="willis"'
    if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_S)
    return JSONResponse(problem.model_dump(), kind.status, headers, media_type=MEDIA_TYPE)


def problem_from(error: WillisError) -> ProblemError:
    """Give an error of the library its kind of problem; what it says to people is kept."""
    if isinstance(error, StaleFeaturesError):
        return ProblemError(STALE_FEATURES, str(error))
    if isinstance(error, ServiceError | ReportServerError):
        return ProblemError(UNAVAILABLE, _without_place(error))
    if isinstance(error, SettingsError) or not isinstance(error, InputError):
        return ProblemError(INTERNAL, "the endpoint is not set up rightly; the operator's log says more")
    return ProblemError(INVALID, str(error))


def install(app: FastAPI) -> None:
    """Make every error of the application leave in the one shape."""

    @app.exception_handler(ProblemError)
    async def on_problem(request: Request, error: ProblemError) -> JSONResponse:
        return problem_response(error.kind, error.detail, request.scope, error.errors)

    @app.exception_handler(WillisError)
    async def on_willis(request: Request, error: WillisError) -> JSONResponse:
        problem = problem_from(error)
        if problem.kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("%s: %s: %s", request.scope["state"]["request_id"], type(error).__name__, error)
        return problem_response(problem.kind, problem.detail, request.scope)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = field_problems(error.errors())
        return problem_response(INVALID, _sentence(errors), request.scope, errors)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        kind = _BY_STATUS.get(error.status_code, BAD_REQUEST if error.status_code < 500 else INTERNAL)
        answer = problem_response(kind, _detail(kind, request, str(error.detail)), request.scope)
        answer.headers.update(error.headers or {})
        return answer


def field_problems(errors: Sequence[Any]) -> list[FieldProblem]:
    """Turn pydantic's errors into ours, without the values: they are a patient's."""
    return [
        FieldProblem(field=".".join(str(part) for part in item["loc"]) or "request", rule=str(item["msg"]))
        for item in errors
    ]


def invalid(errors: Sequence[Any]) -> ProblemError:
    """The problem for pydantic's errors."""
    fields = field_problems(errors)
    return ProblemError(INVALID, _sentence(fields), fields)


def _sentence(errors: Sequence[FieldProblem]) -> str:
    return "; ".join(f"{item.field}: {item.rule}" for item in errors)


def _detail(kind: Kind, request: Request, given: str) -> str:
    if kind is NOT_FOUND and given == "Not Found":
        return f"no route {request.url.path}; GET /openapi.json lists them"
    if kind is METHOD_NOT_ALLOWED:
        return f"{request.method} is not allowed at {request.url.path}; GET /openapi.json says what is"
    return given


def _without_place(error: WillisError) -> str:
    """What failed, without addresses of the operator's services."""
    if isinstance(error, ReportServerError):
        return "the report writer does not answer; try again, or send the report with the request"
    return "a store behind the endpoint does not answer, so nothing was predicted or kept; try again"
