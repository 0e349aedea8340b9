"""From an HTTP body to files on disk and a checked request.

Nothing of what a caller names becomes a path: files are stored under the names of their parts, object keys
are checked by the object store, and whether a volume is compressed is read from its first bytes.
"""

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from serving.problems import BAD_REQUEST, INVALID, UNSUPPORTED_MEDIA, ProblemError, invalid
from serving.schema import FILE_PARTS, PredictionRequest
from willis.stores.objects import ObjectStore

REQUEST_PART = "request"
_GZIP = b"\x1f\x8b"
_PNG = b"\x89PNG"
_MAX_JSON = 256 * 1024


@dataclass(frozen=True)
class Submission:
    """A checked request and its volumes as local files."""

    request: PredictionRequest
    files: dict[str, Path]


async def read_submission(request: Request, folder: Path, store: ObjectStore, max_bytes: int) -> Submission:
    """Read one prediction request.

    Args:
        request: multipart/form-data with files and a JSON part `request`, or application/json alone.
        folder: an empty folder of this request's own.
        store: where references lead.
        max_bytes: largest object that is fetched.

    Raises:
        ProblemError: the body cannot be read or breaks a rule.
        WillisError: an object is absent, or the store does not answer.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(
            max_files=len(FILE_PARTS), max_fields=len(FILE_PARTS) + 1, max_part_size=_MAX_JSON
        ) as form:
            asked, uploads = _split_form(form)
            files = {
                name: await asyncio.to_thread(_save, name, part, folder) for name, part in uploads.items()
            }
    elif kind == "application/json":
        asked, files = _parse_request(await request.body()), {}
    else:
        raise ProblemError(
            UNSUPPORTED_MEDIA,
            f"content type {kind[:80] or 'none'!r}; send multipart/form-data (files) or application/json",
        )
    files |= await asyncio.to_thread(_fetch, asked, set(files), folder, store, max_bytes)
    _require_something(asked, files)
    return Submission(asked, files)


def _split_form(form: FormData) -> tuple[PredictionRequest, dict[str, UploadFile]]:
    uploads: dict[str, UploadFile] = {}
    text = "{}"
    for name, part in form.multi_items():
        if name == REQUEST_PART and isinstance(part, str):
            text = part
        elif name in FILE_PARTS and isinstance(part, UploadFile) and name not in uploads:
            uploads[name] = part
        elif not (name in FILE_PARTS and part == ""):  # browsers send an empty field for no file
            raise ProblemError(BAD_REQUEST, _why_not(name, part))
    return _parse_request(text.encode()), uploads


def _why_not(name: str, part: UploadFile | str) -> str:
    known = ", ".join(FILE_PARTS)
    if name not in (*FILE_PARTS, REQUEST_PART):
        return f"part {name[:80]!r} is not known; send {known} as files and `{REQUEST_PART}` as JSON text"
    if name == REQUEST_PART:
        return f"part `{REQUEST_PART}` came as a file; send it as a text field"
    return f"part {name!r} came {'as text' if isinstance(part, str) else 'twice'}; send one file"


def _parse_request(body: bytes) -> PredictionRequest:
    if len(body) > _MAX_JSON:
        raise ProblemError(BAD_REQUEST, f"the JSON has {len(body)} bytes; at most {_MAX_JSON} are taken")
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise ProblemError(BAD_REQUEST, f"the part `{REQUEST_PART}` is not JSON") from None
    try:
        return PredictionRequest.model_validate_json(body) if isinstance(values, dict) else _not_an_object()
    except ValidationError as error:
        raise invalid(error.errors()) from None


def _not_an_object() -> PredictionRequest:
    raise ProblemError(BAD_REQUEST, f"the part `{REQUEST_PART}` must be a JSON object")


def _save(name: str, part: UploadFile, folder: Path) -> Path:
    start = part.file.read(len(_PNG))
    part.file.seek(0)
    path = folder / _file_name(name, start)
    with path.open("wb") as file:
        shutil.copyfileobj(part.file, file, 1 << 20)
    return path


def _fetch(
    asked: PredictionRequest, sent: set[str], folder: Path, store: ObjectStore, max_bytes: int
) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name, key in (asked.objects.model_dump(exclude_none=True) if asked.objects else {}).items():
        if name in sent:
            raise ProblemError(INVALID, f"{name} came as a file and as objects.{name}; send one of the two")
        copy = store.local_copy(key, folder / "objects", max_bytes)
        with copy.open("rb") as file:
            start = file.read(len(_PNG))
        files[name] = copy.rename(folder / _file_name(name, start))
    return files


def _file_name(stem: str, start: bytes) -> str:
    """The suffix says what the bytes are, because readers of volumes go by it."""
    if start.startswith(_GZIP):
        return f"{stem}.nii.gz"
    return f"{stem}.png" if start == _PNG else f"{stem}.nii"


def _require_something(asked: PredictionRequest, files: dict[str, Path]) -> None:
    has_table = asked.patient_id is not None or (asked.clinical is not None and not asked.clinical.is_empty())
    if not (files or has_table or asked.report):
        raise ProblemError(
            INVALID,
            "neither volumes nor table nor report; send at least one file, `clinical` with one value, "
            "`patient_id` or `report`",
        )
