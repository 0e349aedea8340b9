"""The routes: one FastAPI application over an `Endpoint`."""

from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Request, Response
from fastapi.openapi.utils import get_openapi

from serving.auth import ApiKeys
from serving.endpoint import Endpoint
from serving.gate import Gate
from serving.metrics import CONTENT_TYPE
from serving.problems import MEDIA_TYPE, Problem, install
from serving.schema import (
    FILE_PARTS,
    NOTICE,
    Health,
    ModelAnswer,
    OutcomeAnswer,
    OutcomeReport,
    PredictionAnswer,
    PredictionRequest,
)
from serving.submission import REQUEST_PART

API_VERSION = "1.0.0"
_PART_MEANINGS = {
    "dwi": "Diffusion-weighted volume (b = 1000 or trace), NIfTI, plain or gzipped.",
    "adc": "Apparent diffusion coefficient, NIfTI.",
    "flair": "FLAIR volume, NIfTI.",
    "lesion": "Lesion mask, NIfTI.",
    "planes": "FLAIR in three planes, PNG.",
}
PredictionId = Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,40}$")]


def create_api(endpoint: Endpoint) -> FastAPI:
    """Build the application.

    Args:
        endpoint: what the routes call; None of its parts is touched before the first request.
    """
    api = FastAPI(title="Willis", version=API_VERSION, docs_url=None, redoc_url=None, description=NOTICE)
    install(api)
    _add_predictions(api, endpoint)
    _add_model(api, endpoint)
    keys = endpoint.settings.api_keys
    api.add_middleware(
        Gate,
        keys=ApiKeys(keys.get_secret_value() if keys else None),
        metrics=endpoint.metrics,
        max_body_mb=endpoint.config.deploy.max_upload_mb,
        deadline_s=endpoint.config.deploy.request_deadline_s,
    )
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


def _add_predictions(api: FastAPI, endpoint: Endpoint) -> None:
    @api.post(
        "/v1/predictions",
        status_code=201,
        summary="Predict one patient",
        operation_id="createPrediction",
        responses=_responses(PredictionAnswer, 201, 400, 401, 403, 409, 413, 415, 422, 503, 504),
        openapi_extra={"requestBody": _request_body()},
        response_class=Response,
    )
    async def create_prediction(request: Request) -> Response:
        """Answer with a calibrated probability; the answer is in the prediction log before it leaves."""
        return _json(await endpoint.predict(request), 201)

    @api.get(
        "/v1/predictions/{prediction_id}",
        summary="Read a prediction again",
        operation_id="readPrediction",
        responses=_responses(PredictionAnswer, 200, 401, 403, 404, 422, 503),
        response_class=Response,
    )
    async def read_prediction(prediction_id: PredictionId) -> Response:
        """Return exactly what was answered."""
        return _json(await endpoint.stored(prediction_id))

    @api.post(
        "/v1/outcomes",
        summary="Report what became of a patient",
        operation_id="reportOutcome",
        responses=_responses(None, 200, 400, 401, 403, 404, 409, 413, 422, 503),
    )
    async def report_outcome(report: Annotated[OutcomeReport, Body()]) -> OutcomeAnswer:
        """Keep the 90-day outcome. The same outcome twice is no error; another one is a conflict."""
        return await endpoint.record_outcome(report)


def _add_model(api: FastAPI, endpoint: Endpoint) -> None:
    @api.get(
        "/v1/model",
        summary="Which model answers",
        operation_id="readModel",
        responses=_responses(None, 200, 401, 403, 503),
    )
    async def read_model() -> ModelAnswer:
        """Version, origin, licence and intended use of the bundle that answers now."""
        return await endpoint.describe()

    @api.get("/healthz", summary="Is it up", operation_id="health", responses=_responses(None, 200, 503))
    async def health() -> Health:
        """Answer when the model answers and the prediction log can be read."""
        return await endpoint.health()

    @api.get(
        "/metrics",
        summary="Numbers for Prometheus",
        operation_id="metrics",
        responses=_responses(None, 0, 401, 403) | {200: {"content": {"text/plain": {}}}},
        response_class=Response,
    )
    def metrics() -> Response:
        """Counters of every replica on this node, in Prometheus's text format."""
        watched = endpoint.settings.monitor_dir / "latest.prom"
        return Response(endpoint.metrics.exposition(watched), media_type=CONTENT_TYPE)


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, {"cache-control": "no-store"}, media_type="application/json")


def _responses(model: type | None, success: int, *problems: int) -> dict[int | str, dict[str, Any]]:
    """Describe answers: every status but the good one is a problem."""
    problem = {"$ref": "#/components/schemas/Problem"}
    answers: dict[int | str, dict[str, Any]] = {
        status: {"description": "Problem details", "content": {MEDIA_TYPE: {"schema": problem}}}
        for status in (*problems, 405, 500)
    }
    if model is not None:
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        answers[success] = {"description": "Done", "content": {"application/json": {"schema": schema}}}
    return answers


def _request_body() -> dict[str, Any]:
    request = {"$ref": "#/components/schemas/PredictionRequest"}
    files = {
        name: {"type": "string", "format": "binary", "description": _PART_MEANINGS[name]}
        for name in FILE_PARTS
    }
    form = {"type": "object", "properties": {REQUEST_PART: request, **files}}
    encoding = {REQUEST_PART: {"contentType": "application/json"}}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form, "encoding": encoding},
            "application/json": {"schema": request},
        },
    }


def _openapi(api: FastAPI) -> dict[str, Any]:
    """FastAPI's description with what it cannot see: the parsed form, the problems, and the key."""
    from pydantic.json_schema import models_json_schema

    if api.openapi_schema is None:
        described = get_openapi(
            title=api.title, version=api.version, description=api.description, routes=api.routes
        )
        answers: list[Any] = [(PredictionAnswer, "serialization"), (Problem, "serialization")]
        _, defined = models_json_schema(
            [(PredictionRequest, "validation"), *answers], ref_template="#/components/schemas/{model}"
        )
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas |= {name: schema for name, schema in defined["$defs"].items() if name not in schemas}
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
        api.openapi_schema = described
    return api.openapi_schema
