"""Trained eyes beside their studies, so that a training that was killed goes on with the language."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from willis.reports.reader_training import EyesParams

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration

_FILE, _KEY, _RECORD = "eyes.safetensors", "key", "record"
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
                told = file.metadata() or {}
                if told.get(_KEY) != self.key:
                    return None
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        _eyes_of(model).load_state_dict(weights)
        return EyesRecord(**json.loads(told[_RECORD]))

    def save(self, model: "Idefics3ForConditionalGeneration", record: EyesRecord) -> None:
        """Keep a model's eyes; the file appears whole or not at all."""
        weights: dict[str, Tensor] = {
            name: value.cpu().contiguous() for name, value in _eyes_of(model).state_dict().items()
        }
        partial = self.path.with_suffix(".partial")
        save_file(weights, partial, {_KEY: self.key, _RECORD: json.dumps(asdict(record))})
        partial.replace(self.path)


def _eyes_of(model: "Idefics3ForConditionalGeneration") -> nn.ModuleDict:
    return nn.ModuleDict({"vision": model.model.vision_model, "connector": model.model.connector})
