"""What the demo does outside the KFP pipeline, each with a key that says whether it is done already."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

M = TypeVar("M", bound=BaseModel)


class StageRun(BaseModel):
    """How one stage went."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    cached: bool


def key_of(*parts: object) -> str:
    """Digest of everything that a stage reads."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text)
    scratch.replace(path)


def done(record: Path, key: str, model: type[M]) -> M | None:
    """The recorded result of a stage, if it was made under this key."""
    if not record.is_file():
        return None
    stored = json.loads(record.read_text())
    return model.model_validate(stored["result"]) if stored["key"] == key else None


def remember(record: Path, key: str, result: BaseModel) -> None:
    """Record a stage's result under its key."""
    write_whole(record, json.dumps({"key": key, "result": result.model_dump(mode="json")}, indent=1))


def folder_made(folder: Path, key: str, make: Callable[[], object]) -> bool:
    """Make a folder unless it was made under this key; True if it was there already."""
    record = folder.with_name(f"{folder.name}.key")
    if folder.is_dir() and record.is_file() and record.read_text() == key:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    make()
    write_whole(record, key)
    return False
