"""Training on a Ray cluster: the only module that imports ray.train.

Every worker runs the job (`loop.fit`) on its share. A worker that dies brings the group down; Ray starts it
again, and the job goes on from the newest whole checkpoint. An error that would only come again (bad data, no
space) is written down, so that Ray does not try it again and the caller sees it as it is.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Protocol
from uuid import uuid4

import willis.errors
from willis.errors import RayError, StepError, WillisError
from willis.params import LoopParams
from willis.ray_cluster import connected
from willis.training.checkpoints import R
from willis.training.loop import Tick, World

PROGRESS, FAILURE = "progress.json", "failure.json"
# Ray Train runs the loop in a thread, to which glibc gives an arena of its own that hands large blocks back
# after every step; in the main arena `loop.reuse_freed_memory` keeps them.
WORKER_VARIABLES = {"MALLOC_ARENA_MAX": "1"}
POLL_S = 0.25


class ClusterJob(Protocol, Generic[R]):
    """What a cluster can run: it travels to every worker, and goes on from its own checkpoints."""

    @property
    def step(self) -> str:
        """Name of the step and of its section of params.yaml, for messages."""

    @property
    def record(self) -> type[R]:
        """What a tick holds at the end of an epoch."""

    @property
    def params(self) -> LoopParams:
        """Workers, threads, GPUs, and how many lost workers are survived."""

    def run(self, world: World, on_tick: Callable[[Tick[R]], None]) -> object:
        """Do one worker's share, from the newest whole checkpoint."""


def train_on_cluster(job: ClusterJob[R], out: Path, address: str, on_tick: Callable[[Tick[R]], None]) -> None:
    """Run a job on `job.params.num_workers` workers of a Ray cluster; its checkpoints hold the result.

    Args:
        job: what to train; its paths must be readable from every worker.
        out: folder for progress and for Ray's own state; on storage that all nodes share.
        address: `auto`, host:port, or ray://host:port.
        on_tick: called in this process as the run goes on.

    Raises:
        RayError: no cluster answers, it is too small, or workers died more often than `max_failures`.
        WillisError: whatever the job raised on a worker.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (PROGRESS, FAILURE):
        (out / name).unlink(missing_ok=True)
    with connected(address):
        check_size(job.params, address, job.step)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-train") as thread:
            running = thread.submit(_run_trainer, job, out)
            for tick in _ticks(out / PROGRESS, running.done, job):
                on_tick(tick)
            running.result()
    _raise_recorded(out / FAILURE)


def check_size(params: LoopParams, address: str, step: str = "train") -> None:
    """Ray would wait for ever for a worker that fits nowhere.

    Raises:
        RayError: the cluster is too small for these workers.
    """
    import ray

    total = ray.cluster_resources()
    for name, each in (("CPU", float(params.threads_per_worker)), ("GPU", float(params.use_gpu))):
        if total.get(name, 0.0) < each * params.num_workers:
            raise RayError(
                f"the Ray cluster at {address!r} has {total.get(name, 0.0):g} {name}s; training asks for "
                f"{each * params.num_workers:g} (params.yaml: {step}.num_workers is {params.num_workers}, "
                f"{step}.threads_per_worker, {step}.use_gpu)"
            )


def _run_trainer(job: ClusterJob[R], out: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    params = job.params
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "out": str(out)},
        torch_config=TorchConfig(backend="nccl" if params.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=params.num_workers,
            use_gpu=params.use_gpu,
            resources_per_worker={"CPU": params.threads_per_worker, "GPU": int(params.use_gpu)},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Ray's annotations are those of its first Train
            name=f"{job.step}-{uuid4().hex[:12]}",
            storage_path=str((out / "ray").resolve()),
            failure_config=FailureConfig(max_failures=params.max_failures),
            worker_runtime_env={"env_vars": WORKER_VARIABLES},
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # ray.train raises several unrelated classes, and its own wrapped ones
        _raise_recorded(out / FAILURE)
        raise RayError(
            f"training on Ray ended after {params.max_failures} new starts: {error}; checkpoints are kept, "
            f"run `willis {job.step}` again to go on (params.yaml: {job.step}.max_failures)"
        ) from error


def _work(config: dict[str, Any]) -> None:
    """One worker: this runs on the cluster."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    job: ClusterJob[Any] = config["job"]
    out = Path(config["out"])
    if (out / FAILURE).exists():
        return
    torch.set_num_threads(job.params.threads_per_worker)
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), torch.device(get_device()))

    def on_tick(tick: Tick[Any]) -> None:
        if world.rank == 0:
            write_whole(out / PROGRESS, _packed(tick))
        if tick.record is not None:
            ray.train.report(tick.record.model_dump())

    try:
        job.run(world, on_tick)
    except WillisError as error:
        write_whole(out / FAILURE, json.dumps({"kind": type(error).__name__, "message": str(error)}))
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _packed(tick: Tick[R]) -> str:
    record = tick.record.model_dump() if tick.record else None
    return json.dumps({"epoch": tick.epoch, "step": tick.step, "steps": tick.steps, "record": record})


def _ticks(path: Path, is_done: Callable[[], bool], job: ClusterJob[R]) -> Iterator[Tick[R]]:
    """Follow the progress file until the run is done."""
    seen = ""
    while not is_done():
        time.sleep(POLL_S)
        text = path.read_text() if path.exists() else ""
        if text and text != seen:
            seen = text
            values = json.loads(text)
            record = values.pop("record")
            yield Tick(**values, record=job.record(**record) if record else None)


def _raise_recorded(path: Path) -> None:
    if not path.exists():
        return
    recorded = json.loads(path.read_text())
    raise getattr(willis.errors, recorded["kind"], StepError)(recorded["message"])
