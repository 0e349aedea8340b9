"""The model behind the ingress: what it is asked and what it answers."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.schema import ModelAnswer, ModelLineage
from willis.errors import InputError, WillisError
from willis.inference import Case, Prediction, Predictor
from willis.settings import Settings
from willis.stores.registry import Registry


@dataclass(frozen=True)
class Reply:
    """The answer for one case: a prediction, or the sentence that says why there is none."""

    bundle_version: str
    prediction: Prediction | None = None
    refusal: str | None = None


class Model(Protocol):
    """What the ingress needs of the model, wherever it runs."""

    async def predict(self, case: Case) -> Reply:
        """Predict one case."""

    async def describe(self) -> ModelAnswer:
        """Say which bundle answers."""


class LoadedBundle:
    """A bundle of the registry in this process.

    Args:
        version: which bundle.
        settings: where the registry is.

    Raises:
        WillisError: the registry does not hold the bundle, or the bundle is damaged.
    """

    def __init__(self, version: str, settings: Settings) -> None:
        self._bundle = Registry.open(settings).fetch(version)
        self._predictor = Predictor.from_bundle(self._bundle.folder)
        # The text encoder is read at its first use: better now than in somebody's request.
        self._predictor.predict([Case("warm-up", None, np.zeros(0, bool), None, None, None, "No infarct.")])

    def predict(self, cases: list[Case]) -> list[Reply]:
        """Predict cases together; a case that cannot be predicted spoils nobody else's answer."""
        try:
            return [self._reply(prediction) for prediction in self._predictor.predict(cases)]
        except WillisError as error:
            if len(cases) == 1:
                return [self._refusal(error)]
        return [reply for case in cases for reply in self.predict([case])]

    def describe(self) -> ModelAnswer:
        """Say what this bundle is."""
        manifest = self._bundle.manifest
        lineage = manifest.lineage
        return ModelAnswer(
            bundle_version=manifest.version,
            created_at=manifest.created_at,
            sequences=list(manifest.sequences),
            licence=manifest.licence,
            outcome=manifest.outcome,
            intended_use=manifest.intended_use,
            notice=manifest.notice,
            lineage=ModelLineage(**{name: getattr(lineage, name) for name in ModelLineage.model_fields}),
        )

    def _reply(self, prediction: Prediction) -> Reply:
        return Reply(self._bundle.version, prediction)

    def _refusal(self, error: WillisError) -> Reply:
        if not isinstance(error, InputError):
            raise error
        return Reply(self._bundle.version, refusal=str(error))
