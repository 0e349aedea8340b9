"""The Ray Serve graph: HTTP ingress -> model.

    Ingress   reads a request, prepares the study, has the report written, logs, answers   (num_replicas)
    Model     the bundle; takes the cases of concurrent requests together                   (num_replicas)

`willis deploy` puts a config whose import path is `serving.app:build` (serve.yaml shows one). The ingress of
the cluster itself is HAProxy: whoever starts Ray sets RAY_SERVE_ENABLE_HA_PROXY=1 and has the repository's
root on PYTHONPATH.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serving.config import ServeConfig
from serving.model import LoadedBundle, Reply
from serving.schema import ModelAnswer
from willis.inference import Case

_QUEUED_PER_REPLICA = 64
_GRACEFUL_SHUTDOWN_S = 40
_START_ATTEMPTS = 2


@serve.deployment
class Model:
    """One replica of the model.

    Args:
        config: which bundle, and how many cases it takes together.
    """

    def __init__(self, config: ServeConfig) -> None:
        import torch

        from willis.settings import settings

        torch.set_num_threads(1)
        self._loaded = LoadedBundle(config.version, settings())
        self._together.set_max_batch_size(config.deploy.max_batch)  # type: ignore[attr-defined]
        self._together.set_batch_wait_timeout_s(config.deploy.batch_wait_s)  # type: ignore[attr-defined]

    async def predict(self, case: Case) -> Reply:
        """Predict one case, beside those of other requests that are waiting."""
        reply: Reply = await self._together(case)
        return reply

    async def describe(self) -> ModelAnswer:
        """Say which bundle answers."""
        return self._loaded.describe()

    @serve.batch
    async def _together(self, cases: list[Case]) -> list[Reply]:
        # Nothing may be raised in here: an exception would end every request of the batch, not only its own.
        return self._loaded.predict(cases)


@serve.deployment
@serve.ingress()
class Ingress:
    """One replica of the HTTP side.

    Args:
        config: params and limits.
        model: handle of the model.

    Raises:
        WillisError: a secret, the database or the report writer is missing; the replica does not start.
    """

    def __init__(self, config: ServeConfig, model: DeploymentHandle[Any]) -> None:
        from serving.endpoint import Endpoint
        from serving.metrics import Metrics
        from serving.retention import Retention
        from willis.casework import Caseworker
        from willis.settings import settings
        from willis.stores.objects import open_store
        from willis.stores.predictions import PredictionLog
        from willis.stores.registry import Registry

        now = settings()
        config.check_secrets(now)
        metrics = Metrics()  # first: it makes the folder that Feast's own counters need as well
        preprocessing = Registry.open(now).fetch(config.version).preprocessing()
        preprocessing.check_atlas(now.atlas)
        caseworker = Caseworker(preprocessing.applied_to(config.ingest), config.report, now)
        caseworker.warm_up()
        log = PredictionLog(now.database_url.get_secret_value())
        self._endpoint = Endpoint(
            config=config,
            settings=now,
            caseworker=caseworker,
            model=RemoteModel(model),
            log=log,
            objects=open_store(now.object_store, now),
            metrics=metrics,
            workers=ThreadPoolExecutor(config.deploy.threads_per_replica, "willis"),
            retention=Retention(log, now.retention_days),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the routes in the replica, over what the constructor opened."""
        from serving.api import create_api

        return create_api(self._endpoint)


class RemoteModel:
    """The model behind a handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def predict(self, case: Case) -> Reply:
        """Predict one case."""
        reply: Reply = await self._handle.predict.remote(case)
        return reply

    async def describe(self) -> ModelAnswer:
        """Say which bundle answers."""
        answer: ModelAnswer = await self._handle.describe.remote()
        return answer


def build(args: dict[str, Any]) -> Application:
    """Build the application from a Serve config's `args`.

    Raises:
        ValidationError: the args are not a ServeConfig.
    """
    config = ServeConfig.model_validate(args)
    deploy = config.deploy
    common = {
        "num_replicas": deploy.num_replicas,
        "graceful_shutdown_timeout_s": _GRACEFUL_SHUTDOWN_S,
        "max_constructor_retry_count": _START_ATTEMPTS,
        "max_ongoing_requests": deploy.max_in_flight + _QUEUED_PER_REPLICA,
    }
    model = Model.options(  # type: ignore[attr-defined]
        **common,
        ray_actor_options={"num_cpus": deploy.cpus_per_replica, "num_gpus": deploy.gpus_per_replica},
    ).bind(config)
    return Ingress.options(  # type: ignore[attr-defined,no-any-return]
        **common, ray_actor_options={"num_cpus": deploy.cpus_per_replica}
    ).bind(config, model)
