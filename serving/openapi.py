"""The checked-in contract: `python -m serving.openapi` writes openapi.json, the contract test compares it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from serving.api import create_api
from serving.config import ServeConfig
from serving.endpoint import Endpoint
from serving.metrics import Metrics
from serving.model import Model
from serving.retention import Retention
from willis.casework import Caseworker
from willis.settings import Settings
from willis.stores.objects import ObjectStore
from willis.stores.predictions import PredictionLog

PATH = Path(__file__).with_name("openapi.json")


def description() -> str:
    """Return the OpenAPI description of this code as stable JSON. Nothing is opened for it."""
    nothing = cast(object, None)
    endpoint = Endpoint(
        config=ServeConfig(version="none"),
        settings=Settings(),
        caseworker=cast(Caseworker, nothing),
        model=cast(Model, nothing),
        log=cast(PredictionLog, nothing),
        objects=cast(ObjectStore, nothing),
        metrics=Metrics(),
        workers=cast(ThreadPoolExecutor, nothing),
        retention=cast(Retention, nothing),
    )
    return json.dumps(create_api(endpoint).openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(description())
