"""What a step reads: its params section and the library code it reaches; the reasons to run it again.

A thin KFP component's source never changes, so its cache key must hold the digest of the code behind it.
`willis pipeline why` compares exactly what the cache compares.
"""

import hashlib
import json
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from willis.errors import ParamsError
from willis.params import Params

GRAPH: dict[str, tuple[str, ...]] = {
    "version": (),
    "ingest": ("version",),
    "report": ("ingest",),
    "featurize": ("ingest", "report"),
    "train": ("ingest", "featurize"),
    "evaluate": ("ingest", "featurize", "train"),
    "promote": ("version", "ingest", "featurize", "train", "evaluate"),
}
"""Which step reads which; the contract tests hold the KFP and the DVC graph against it."""

RECORD = "steps.json"


class StepRecord(BaseModel):
    """What a step had read when it last finished; `seconds` is None where nobody saw it run."""

    model_config = ConfigDict(frozen=True)

    params: dict[str, Any]
    code: dict[str, str]
    cohort_digest: str | None
    seconds: float | None


class Reasons(BaseModel):
    """Why a step would run again; no reason means that it is done."""

    model_config = ConfigDict(frozen=True)

    step: str
    done: bool
    reasons: tuple[str, ...]


@lru_cache(maxsize=1)
def _import_graph() -> Any:
    import grimp

    return grimp.build_graph("willis", cache_dir=None)


@cache
def module_digests(module: str) -> dict[str, str]:
    """Digest of every library module that a module can reach, imports inside functions included.

    Returns:
        Module name -> first 12 hex digits of its source's sha256.
    """
    modules = _import_graph().find_upstream_modules(module) | {module}
    return {name: _source_digest(name) for name in sorted(modules)}


def code_digests(step: str) -> dict[str, str]:
    """Digests of the library code behind a step: a name of `GRAPH`, or `deploy` or `monitor`."""
    return module_digests(f"willis.steps.{step}")


def code_digest(step: str) -> str:
    """One digest over `code_digests(step)`: the value that enters the cache key."""
    return hashlib.sha256(json.dumps(code_digests(step)).encode()).hexdigest()[:16]


def cohort_digest(cohort: Path) -> str:
    """Digest of names, sizes and modification times below a cohort: cheap, and enough to see a change."""
    digest = hashlib.sha256()
    for path in sorted(cohort.rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(cohort)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def record_step(run: Path, step: str, params: Params, cohort: str | None, seconds: float | None) -> None:
    """Remember what a finished step had read, for `why`.

    Args:
        run: folder of the local runs.
        step: a name of `GRAPH`.
        params: the parameters that it ran with.
        cohort: digest of the cohort.
        seconds: how long it took; None where its output came from the cache, which leaves a record of the
            same inputs as it is.
    """
    records = _records(run)
    found = StepRecord(
        params=_section(step, params), code=code_digests(step), cohort_digest=cohort, seconds=seconds
    )
    before = records.get(step)
    if seconds is None and before and before.model_copy(update={"seconds": None}) == found:
        return
    records[step] = found
    text = json.dumps({name: item.model_dump(mode="json") for name, item in records.items()}, indent=1)
    run.mkdir(parents=True, exist_ok=True)
    scratch = run / f"{RECORD}.tmp"
    scratch.write_text(text)
    scratch.replace(run / RECORD)


def last_seconds(run: Path, step: str) -> float | None:
    """How long a step took when it last ran, None if it never did."""
    record = _records(run).get(step)
    return record.seconds if record else None


def why(step: str, params: Params, run: Path, cohort: Path | None = None) -> Reasons:
    """Compare what a step would read now with what it had read.

    Args:
        step: a name of `GRAPH`.
        params: the parameters as they are now.
        run: folder of the local runs, written by `record_step`.
        cohort: the cohort, to see whether it changed; None leaves that question out.

    Raises:
        ParamsError: no such step.
    """
    if step not in GRAPH:
        raise ParamsError(f"step is {step!r}; it must be one of {', '.join(GRAPH)}")
    record = _records(run).get(step)
    if record is None:
        return Reasons(step=step, done=False, reasons=(f"{step} has never finished in {run}",))
    reasons = [
        *_changed("params." + step, record.params, _section(step, params)),
        *_changed("code", record.code, code_digests(step)),
    ]
    if step == "version" and cohort is not None and cohort_digest(cohort) != record.cohort_digest:
        reasons.append(f"the files of {cohort} changed")
    for upstream in GRAPH[step]:
        if not why(upstream, params, run, cohort).done:
            reasons.append(f"{upstream} would run again")
    return Reasons(step=step, done=not reasons, reasons=tuple(reasons))


def _changed(place: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    keys = sorted(before.keys() | after.keys())
    return [f"{place}.{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def _section(step: str, params: Params) -> dict[str, Any]:
    section: dict[str, Any] = getattr(params, step).model_dump(mode="json")
    return section


def _records(run: Path) -> dict[str, StepRecord]:
    path = run / RECORD
    if not path.is_file():
        return {}
    return {name: StepRecord.model_validate(item) for name, item in json.loads(path.read_text()).items()}


def _source_digest(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return "namespace"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:12]
