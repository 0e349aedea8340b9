"""A folder that is whole or not there.

Everything is built in a hidden folder beside the destination and moved in one rename. The hidden folder keeps
the plan it was made for: a run that was cut off is taken up where it stopped, another plan starts afresh.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue

from willis.errors import CohortError
from willis.outputs import NO_SPACE

_PLAN, _LOCK = ".plan.json", ".lock"
Summary = TypeVar("Summary", bound=BaseModel)


class Plan(BaseModel):
    """What decides the bytes of a folder: the parameters, and the code that turns them into files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: dict[str, JsonValue]
    code: str


def plan_of(params: Mapping[str, JsonValue], sources: Iterable[Path]) -> Plan:
    """The plan of these parameters and of the code as it stands on disk."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return Plan(params=dict(params), code=digest[:16])


def finished(out: Path, record: Path, plan: Plan, kind: type[Summary]) -> Summary | None:
    """The summary of what stands at `out` if it was made by the same plan; None if nothing stands there.

    Args:
        out: the whole folder.
        record: where in it a JSON file holds `plan` and `summary`.
        plan: the plan asked for.
        kind: what the summary is.

    Raises:
        CohortError: something else stands there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / record).read_text())
        if Plan.model_validate(found["plan"]) == plan:
            return kind.model_validate(found["summary"])
    except (OSError, ValueError, KeyError):
        pass
    raise CohortError(f"{out} is taken by something else; remove it or choose another folder (--out)")


@contextmanager
def staged(out: Path, plan: Plan, *, num_bytes: int) -> Iterator[Path]:
    """Give a hidden folder to build in; move it to `out` if the block ends well.

    Args:
        out: where the whole folder goes.
        plan: a hidden folder left by the same plan is gone on with, any other is removed.
        num_bytes: how much the whole will take, about.

    Raises:
        CohortError: another run holds the folder, or there is no space; what is written is kept.
    """
    partial = out.parent / f".{out.name}.partial"
    with _explained(partial, num_bytes):
        partial.mkdir(parents=True, exist_ok=True)
        with _held(partial):
            _start(partial, plan)
            _check_space(partial, num_bytes)
            yield partial
            for name in (_PLAN, _LOCK):
                (partial / name).unlink()
            partial.rename(out)


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    with (partial / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CohortError(f"another run is building {partial}; wait for it or end it") from None
        yield


def _start(partial: Path, plan: Plan) -> None:
    """Go on with what the same plan left, or empty the folder."""
    path = partial / _PLAN
    text = plan.model_dump_json()
    if path.is_file() and path.read_text() == text:
        return
    for found in partial.iterdir():
        if found.name != _LOCK:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    path.write_text(text)


def _check_space(partial: Path, num_bytes: int) -> None:
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial).free
    if free < num_bytes - written:
        raise _no_space(partial, num_bytes)


@contextmanager
def _explained(partial: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise _no_space(partial, num_bytes) from None
    except BrokenProcessPool:
        raise CohortError(
            f"a process was killed from outside (out of memory?) while building {partial}; "
            "what is finished is kept: run the same command again"
        ) from None


def _no_space(partial: Path, num_bytes: int) -> CohortError:
    free = shutil.disk_usage(partial if partial.exists() else partial.parent).free
    return CohortError(
        f"no space: the cohort needs about {num_bytes / 1e6:.0f} MB and {free / 1e6:.0f} MB are free "
        f"({os.fspath(partial)}); what is finished is kept: free some space and run the same command again"
    )
