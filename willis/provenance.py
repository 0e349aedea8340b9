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
from willis.params import Params, load_params, parse_section
from willis.reports.model_files import NAME, model_files, model_folder
from willis.settings import settings

GRAPH: dict[str, tuple[str, ...]] = {
    "version": (),
    "ingest": ("version",),
    "report": ("ingest",),
    "featurize": ("ingest", "report"),
    "pretrain": ("ingest",),
    "train": ("ingest", "featurize", "pretrain"),
    "evaluate": ("ingest", "featurize", "train"),
    "promote": ("version", "ingest", "featurize", "train", "evaluate"),
}
"""Which step reads which; the contract tests hold the KFP and the DVC graph against it."""

RECORD, INPUTS = "steps.json", "run.json"
DEFINITIONS = "feature_repo/features.py"
READER = "willis/reports/reader"
DEFAULT_PARAMS = Path("params.yaml")
Sections = dict[str, dict[str, Any]]


class StepRecord(BaseModel):
    """What a step had read when it last finished; `seconds` is None where nobody saw it run."""

    model_config = ConfigDict(frozen=True)

    params: dict[str, Any]
    code: dict[str, str]
    cohort_digest: str | None
    seconds: float | None


class RunInputs(BaseModel):
    """What the last local run was started with; run.json in its folder.

    Attributes:
        params_file: the file that its parameters came from.
        written: the parameters as they stood there.
        used: the same, adapted to what the source of the patients has.
        cohort: the cohort that it read.
        synthesised: the cohort is made from the section `cohort`, and made again when that changes.
    """

    model_config = ConfigDict(frozen=True)

    params_file: Path
    written: Sections
    used: Sections
    cohort: Path
    synthesised: bool


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


def code_digests(step: str, model: str = NAME) -> dict[str, str]:
    """Digests of the code behind a step, and of what it loads by a path.

    Beside the library's modules, `featurize` reaches Feast's definitions and `report` the model's files.

    Args:
        step: a name of `GRAPH`, or `deploy` or `monitor`.
        model: `report.model`; one with a Hugging Face name has no files here.

    Raises:
        StepError: the packaged reader is not there.
    """
    return module_digests(f"willis.steps.{step}") | _loaded(step, model)


def _loaded(step: str, model: str) -> dict[str, str]:
    if step == "featurize":
        return {DEFINITIONS: _file_digest(settings().feature_repo / "features.py")}
    if step == "report" and (folder := model_folder(model)):
        name = READER if model == NAME else model
        files = model_files(folder)
        return {f"{name}/{path.relative_to(folder).as_posix()}": _file_digest(path) for path in files}
    return {}


def code_digest(step: str, model: str = NAME) -> str:
    """One digest over `code_digests`: the value that enters the cache key."""
    return hashlib.sha256(json.dumps(code_digests(step, model)).encode()).hexdigest()[:16]


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
        params=_section(step, params),
        code=code_digests(step, params.report.model),
        cohort_digest=cohort,
        seconds=seconds,
    )
    before = records.get(step)
    if seconds is None and before and before.model_copy(update={"seconds": None}) == found:
        return
    records[step] = found
    text = json.dumps({name: item.model_dump(mode="json") for name, item in records.items()}, indent=1)
    _write_whole(run / RECORD, text)


def record_inputs(run: Path, inputs: RunInputs) -> None:
    """Remember what a run is started with, for `explain`."""
    _write_whole(run / INPUTS, inputs.model_dump_json(indent=1))


def last_seconds(run: Path, step: str) -> float | None:
    """How long a step took when it last ran, None if it never did."""
    record = _records(run).get(step)
    return record.seconds if record else None


def explain(step: str, run: Path, params_file: Path | None = None, cohort: Path | None = None) -> Reasons:
    """Say why the next run would run a step again.

    Args:
        step: a name of `GRAPH`.
        run: folder of the local runs.
        params_file: the parameters to compare with; None means the file that the last run read.
        cohort: the cohort to compare with; None means the one that the last run read.

    Raises:
        ParamsError: no such step, or the parameters cannot be read.
    """
    inputs = _inputs(run)
    if inputs is None:
        return why(step, load_params(params_file or DEFAULT_PARAMS), run, cohort)
    params = _adapted(load_params(params_file or inputs.params_file), inputs)
    return why(step, params, run, cohort or inputs.cohort)


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
        *_changed("code", record.code, code_digests(step, params.report.model)),
    ]
    if step == "version":
        reasons += _changes_of_cohort(params, run, cohort, record)
    for upstream in GRAPH[step]:
        if not why(upstream, params, run, cohort).done:
            reasons.append(f"{upstream} would run again")
    return Reasons(step=step, done=not reasons, reasons=tuple(reasons))


def _changes_of_cohort(params: Params, run: Path, cohort: Path | None, record: StepRecord) -> list[str]:
    inputs = _inputs(run)
    made = inputs is not None and inputs.synthesised
    before = inputs.used.get("cohort", {}) if inputs and made else _section("cohort", params)
    reasons = _changed("params.cohort", before, _section("cohort", params))
    if cohort is not None and cohort_digest(cohort) != record.cohort_digest:
        reasons.append(f"the files of {cohort} changed")
    return reasons


def _adapted(params: Params, inputs: RunInputs) -> Params:
    """Adapt parameters as the run did: what stands in the file as before counts as it was used."""
    now: Sections = params.model_dump(mode="json")
    for name, section in now.items():
        written, used = inputs.written.get(name, {}), inputs.used.get(name, {})
        section.update({k: used[k] for k, value in section.items() if k in used and written.get(k) == value})
    return parse_section(Params, now, f"{inputs.params_file}, adapted as in {INPUTS}")


def _changed(place: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    keys = sorted(before.keys() | after.keys())
    return [f"{place}.{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def _section(step: str, params: Params) -> dict[str, Any]:
    section: dict[str, Any] = getattr(params, step).model_dump(mode="json")
    return section


def _inputs(run: Path) -> RunInputs | None:
    path = run / INPUTS
    return RunInputs.model_validate_json(path.read_text()) if path.is_file() else None


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(text)
    scratch.replace(path)


def _records(run: Path) -> dict[str, StepRecord]:
    path = run / RECORD
    if not path.is_file():
        return {}
    return {name: StepRecord.model_validate(item) for name, item in json.loads(path.read_text()).items()}


def _source_digest(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return "namespace"
    return _file_digest(Path(spec.origin))


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "absent"
