"""Where a model came from, read out of what the steps wrote."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from willis.errors import InputError
from willis.models.bundle import Lineage

R = TypeVar("R", bound=BaseModel)


class _Cohort(BaseModel):
    """The part of version.json that a bundle keeps."""

    model_config = ConfigDict(extra="ignore")

    md5: str
    size_bytes: int
    num_files: int
    remote: str | None = None


class _Features(BaseModel):
    """The part of features.json that a bundle keeps."""

    model_config = ConfigDict(extra="ignore")

    feature_service: str | None = None
    events_from: datetime | None = None
    events_until: datetime | None = None
    report_writers: Sequence[str] = ()
    report_models: Sequence[str] = ()
    report_prompt_hashes: Sequence[str] = ()


class _Training(BaseModel):
    """The part of train.json that has a place of its own in a bundle; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow")

    git_revision: str | None = None
    git_dirty: bool | None = None
    seed: int | None = None


class _Contract(BaseModel):
    """The part of contract.json that a bundle's manifest repeats."""

    model_config = ConfigDict(extra="ignore")

    sequences: tuple[str, ...]


def read_lineage(version: Path, features: Path, model: Path, willis_version: str) -> Lineage:
    """Collect a bundle's lineage.

    Args:
        version: output folder of `version`; version.json.
        features: output folder of `featurize`; features.json.
        model: output folder of `train`; train.json, which knows the code that trained.
        willis_version: of the library that promotes.

    Raises:
        InputError: a file is missing or breaks its schema.
    """
    cohort = _read(version / "version.json", _Cohort)
    table = _read(features / "features.json", _Features)
    training = _read(model / "train.json", _Training)
    told = training.model_dump(mode="json", exclude={"git_revision", "git_dirty"}, exclude_unset=True)
    return Lineage(
        cohort_md5=cohort.md5,
        cohort_size_bytes=cohort.size_bytes,
        cohort_num_files=cohort.num_files,
        cohort_remote=cohort.remote,
        git_revision=training.git_revision,
        git_dirty=training.git_dirty,
        report_writer=", ".join(table.report_writers) or None,
        report_model=", ".join(table.report_models) or None,
        report_prompt_hashes=tuple(table.report_prompt_hashes),
        feature_service=table.feature_service,
        features_from=table.events_from,
        features_until=table.events_until,
        training=json.dumps(told, sort_keys=True, separators=(",", ":")),
        seed=training.seed,
        willis_version=willis_version,
    )


def read_sequences(model: Path) -> tuple[str, ...]:
    """Return the MRI sequences that a trained network reads, in order.

    Raises:
        InputError: contract.json is missing or breaks its schema.
    """
    return _read(model / "contract.json", _Contract).sequences


def _read(path: Path, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "content"
        raise InputError(f"{path}: {place}: {first['msg']}; run the step that writes it again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); run the step that writes it first"
        ) from None
