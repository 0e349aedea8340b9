"""The stages of the demo in their order; each reads what earlier ones left on disk."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local.calls import stream_calls
from infra.local.cost import Meter
from infra.local.page import write_page
from infra.local.servers import Servers, servers
from infra.local.source import LastSource, Source, atlas_of
from infra.local.stages import done, key_of, remember, write_whole
from infra.local.stream import StreamRun, send_stream
from infra.local.summary import Summary, summarise
from pipelines.local import StepRun, prune, run_monitoring, run_training
from willis.errors import StepError
from willis.monitoring.results import MonitorSummary
from willis.provenance import GRAPH, code_digest, module_digests

if TYPE_CHECKING:
    from infra.local.demo import Journal


@dataclass(frozen=True)
class Circle:
    """Everything that the stages left behind."""

    source: Source
    root: Path
    steps: dict[str, StepRun]
    streams: dict[str, StreamRun | None]
    windows: dict[str, MonitorSummary | None]


def run_circle(source: Source, root: Path, journal: "Journal", meter: Meter) -> Summary:
    """Walk the circle once and write summary.json and index.html.

    Raises:
        WillisError: a stage failed; what is finished stays, and the next run goes on from there.
    """
    with journal.stage("cohort") as cached:
        cached(source.make())
    use_atlas(atlas_of(source.cohort))
    with servers(root) as up:
        steps = _pipeline(source, root, journal, up)
        streams = _streams(source, root, steps, journal, up)
    windows = {name: _window(source, root, name, stream, journal) for name, stream in streams.items()}
    circle = Circle(source, root, steps, streams, windows)
    _remember_source(source, root, steps)
    with journal.stage("page") as _:
        page = write_page(circle, root / "index.html")
    summary = summarise(circle, journal.stages, page, meter.read())
    write_whole(root / "summary.json", summary.model_dump_json(indent=2))
    prune(root / "pipeline", steps)
    return summary


def use_atlas(atlas: Path | None) -> None:
    """Let the endpoint measure territories by the atlas of the cohort, as ingest does."""
    if atlas is not None:
        os.environ["WILLIS_ATLAS"] = str(atlas)
        from willis.settings import settings

        settings.cache_clear()


def _pipeline(source: Source, root: Path, journal: "Journal", up: Servers) -> dict[str, StepRun]:
    from infra.local.demo import console

    on_ray = {"train"} if source.params.pretrain.method == "none" else {"pretrain", "train"}
    with console.status("pipeline ...") as status:

        def follow(step: str, state: str) -> None:
            if step in on_ray and state == "running":
                status.update("starting Ray ...")
                up.ray()
            if step == "report" and state == "running":
                status.update("starting the report writer ...")
                up.reader(source.params.report)
            status.update(f"{step}: {state} ...")

        steps = run_training(source.cohort, source.params, root / "pipeline", follow)
    for name in GRAPH:
        journal.add(name, steps[name].seconds, steps[name].cached)
    return steps


def _streams(
    source: Source, root: Path, steps: dict[str, StepRun], journal: "Journal", up: Servers
) -> dict[str, StreamRun | None]:
    key = key_of(
        steps["promote"].output.joinpath("promotion.json").read_text(),
        source.params.deploy.model_dump(),
        source.params.report.model_dump(),
        code_digest("deploy"),
        code_digest("report", source.params.report.model),
        module_digests("willis.casework"),
    )
    recorded = {name: done(_record(root, name), key, StreamRun) for name in source.streams}
    if all(recorded[name] or make is None for name, make in source.streams.items()):
        for name in ("deploy", *(f"stream {stream}" for stream in source.streams)):
            journal.add(name, 0.0, True)
        return recorded
    up.reader(source.params.report)
    up.ray()
    with journal.stage("deploy"):
        url = _deploy(source, steps["promote"].output)
    return {name: _stream(source, root, name, key, url, steps, journal) for name in source.streams}


def _stream(
    source: Source, root: Path, name: str, key: str, url: str, steps: dict[str, StepRun], journal: "Journal"
) -> StreamRun | None:
    make = source.streams[name]
    if make is None:
        return None
    with journal.stage(f"stream {name}"):
        stream = send_stream(url, stream_calls(make(), source.params.ingest, steps["ingest"].output))
    if not stream.num_predictions:
        raise StepError(
            f"none of the stream's requests was answered; the first problem: {stream.failures[0]}"
        )
    remember(_record(root, name), key, stream)
    return stream


def _remember_source(source: Source, root: Path, steps: dict[str, StepRun]) -> None:
    ordinary = source.streams["ordinary"]
    assert ordinary is not None, "every source has an ordinary stream"
    last = LastSource(
        params=source.params,
        stream=ordinary(),
        ingested=steps["ingest"].output,
        atlas=atlas_of(source.cohort),
    )
    write_whole(root / "source.json", last.model_dump_json(indent=1))


def _record(root: Path, name: str) -> Path:
    return root / "streams" / f"{name}.json"


def _deploy(source: Source, promotion: Path) -> str:
    from willis.settings import settings
    from willis.steps.deploy import deploy

    params = source.params
    return deploy(promotion, params.deploy, settings(), params.ingest, params.report).url


def _window(
    source: Source, root: Path, name: str, stream: StreamRun | None, journal: "Journal"
) -> MonitorSummary | None:
    if stream is None:
        return None
    key = key_of(stream.model_dump(mode="json"), source.params.monitor.model_dump(), code_digest("monitor"))
    record = root / "windows" / f"{name}.json"
    with journal.stage(f"monitor {name}") as cached:
        found = done(record, key, MonitorSummary)
        cached(found is not None)
        if found is None:
            found = run_monitoring(stream.since, stream.until, source.params, root / "monitor" / name)
            remember(record, key, found)
    return found
