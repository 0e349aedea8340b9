"""Trained eyes beside their studies, so that a training that was killed goes on with the language."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open
from torch import nn

from willis.models.weights import save_weights
from willis.reports.reader_training import EyesParams

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration

_FILE, _EYES = "eyes.safetensors", "eyes"
_SOURCES = tuple(Path(__file__).with_name(f"{name}.py") for name in ("reader_training", "reader_model"))


@dataclass(frozen=True)
class EyesRecord:
    """How the training of the eyes went: mean loss of its last tenth, and how long it took."""

    loss: float
    seconds: float


@dataclass(frozen=True)
class KeptEyes:
    """Where the eyes of these parameters and this code lie, or will.

    Attributes:
        path: of the weights, beside the studies that they were trained on.
        key: of everything that made them.
    """

    path: Path
    key: str

    @classmethod
    def of(cls, studies_dir: Path, seed: int, params: EyesParams) -> Self:
        """Name the eyes that a training would make."""
        summed = hashlib.sha256((studies_dir / "studies.json").read_bytes())
        summed.update(json.dumps([seed, asdict(params)]).encode())
        for source in _SOURCES:
            summed.update(source.read_bytes())
        return cls(studies_dir / _FILE, summed.hexdigest())

    def load(self, model: "Idefics3ForConditionalGeneration") -> EyesRecord | None:
        """Put the kept weights into a model; None where there are none, others, or damaged ones."""
        try:
            with safe_open(self.path, "pt") as file:
                key, record = json.loads((file.metadata() or {}).get(_EYES, "[null, null]"))
                if key != self.key:
                    return None
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        _eyes_of(model).load_state_dict(weights)
        return EyesRecord(**record)

    def save(self, model: "Idefics3ForConditionalGeneration", record: EyesRecord) -> None:
        """Keep a model's eyes; the file appears whole or not at all.

        Raises:
            StepError: the disk is full or not writable.
        """
        told = {_EYES: json.dumps([self.key, asdict(record)])}
        save_weights(_eyes_of(model).state_dict(), self.path, "willis reports train-reader", told)


def _eyes_of(model: "Idefics3ForConditionalGeneration") -> nn.ModuleDict:
    return nn.ModuleDict({"vision": model.model.vision_model, "connector": model.model.connector})
