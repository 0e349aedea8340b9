"""Training throughput under Ray Train against a bare torch loop, and the share of time waiting for data.

    python -m benchmarks.training_loop --json out.json

Both train the same network on the same batches with the same number of processes, one after the other,
several times in alternating order; the bare loop is written out here (spawned processes, gloo, DDP, volumes
in memory) and shares only the network, the loss and the order of patients with the platform. The first epoch
of each run is left out (allocator, page cache). Targets: ratio >= 0.95, waiting <= 5 %.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from benchmarks.results import figure_rows, write_results
from infra.local.ray_head import VARIABLES, auth_variables
from willis.cohort.schema import POOR_FROM
from willis.models.losses import join_ranks, total_loss
from willis.models.network import NetworkConfig, TrimodalNetwork
from willis.models.table import FeatureColumn
from willis.params import TrainParams
from willis.training.checkpoints import Checkpoints
from willis.training.dataset import Cases, collate, epoch_order, num_steps, shares, with_dropout
from willis.training.distributed import train_on_cluster
from willis.training.loop import Job, reuse_freed_memory
from willis.training.optimizer import learning_rate, make_optimizer
from willis.training.start import subsets_to_ask

SHAPE = (88, 104, 40)
SEQUENCES = ("dwi", "adc", "flair")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--ray-address", help="a running cluster; without it one is started")
    parser.add_argument("--patients", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster(arguments) as address:
        figures = measure(Path(folder), address, arguments)
    _show(figures)
    if arguments.json:
        rows = figure_rows("training_loop", "willis", figures, arguments.patients)
        write_results(arguments.json, rows, arguments)


def measure(folder: Path, address: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run both loops in alternating order and compare their median epochs."""
    params = TrainParams(
        epochs=arguments.epochs, patience=arguments.epochs, num_workers=arguments.workers, batch_size=32
    )
    cases, config = made_cases(folder, arguments.patients)
    bare: list[float] = []
    under_ray: list[float] = []
    waits: list[float] = []
    for repeat in range(arguments.repeats):
        job = Job(cases, config, params, Checkpoints(folder / f"checkpoints-{repeat}", "benchmark"))
        for name in ("bare", "ray") if repeat % 2 == 0 else ("ray", "bare"):
            if name == "bare":
                bare += bare_seconds(job, folder)
            else:
                records = ray_records(job, folder / f"run-{repeat}", address)
                under_ray += [record[0] for record in records]
                waits += [record[1] for record in records]
    num_patients = len(cases.rows("train", labelled_only=False))
    bare_s, ray_s = statistics.median(bare), statistics.median(under_ray)
    return {
        "num_workers": float(arguments.workers),
        "num_patients": float(num_patients),
        "bare_patients_per_s": num_patients / bare_s,
        "ray_patients_per_s": num_patients / ray_s,
        "ratio": bare_s / ray_s,
        "ms_per_patient_step": 1e3 * ray_s / num_patients,
        "data_wait_share": statistics.median(waits),
    }


def ray_records(job: Job, out: Path, address: str) -> list[tuple[float, float]]:
    """Train on the cluster; seconds and waiting share of every epoch but the first."""
    train_on_cluster(job, out, address, lambda tick: None)
    state = job.checkpoints.newest()
    assert state is not None, "a run that ended well has left a checkpoint"
    return [(record.seconds, record.data_wait_share) for record in state.history[1:]]


def bare_seconds(job: Job, folder: Path) -> list[float]:
    """Train in spawned processes with nothing of the platform around; seconds per epoch but the first."""
    store = Path(tempfile.mkdtemp(dir=folder))
    mp.spawn(_bare_rank, args=(job, store), nprocs=job.params.num_workers)
    seconds: list[float] = json.loads((store / "seconds.json").read_text())
    return seconds[1:]


def _bare_rank(rank: int, job: Job, folder: Path) -> None:
    params, world = job.params, job.params.num_workers
    torch.set_num_threads(params.threads_per_worker)
    reuse_freed_memory()
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), world), rank=rank, world_size=world
    )
    torch.manual_seed(params.seed)
    network = TrimodalNetwork(job.config)
    model = torch.nn.parallel.DistributedDataParallel(
        network, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    optimizer = make_optimizer(network, params)
    rows, subsets = job.cases.rows("train", labelled_only=False), subsets_to_ask(job.config, params)
    steps, seconds = num_steps(len(rows), params.batch_size), []
    for epoch in range(params.epochs):
        todo = shares(epoch_order(rows, params.seed, epoch), params.batch_size, rank, world)
        batches = [
            with_dropout(collate(job.cases, share, job.config), share, params, epoch) for share in todo
        ]
        dist.barrier()
        started = time.perf_counter()
        for at, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(params, epoch * steps + at, params.epochs * steps)
            scored = join_ranks(network.scored(batch, model(batch, subsets)))
            losses = total_loss(scored, params.lambda_contrast, params.lambda_align)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), params.clip_norm)
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def made_cases(folder: Path, num_patients: int) -> tuple[Cases, NetworkConfig]:
    """Random codes at the canonical grid: speed does not depend on what they show."""
    import pandas as pd

    from willis.imaging.shards import ShardWriter, StudyArrays

    rng = np.random.default_rng(0)
    num = num_patients + 16
    with ShardWriter(folder / "shards", "volumes", (len(SEQUENCES), *SHAPE), 64) as writer:
        places = [
            writer.add(rng.integers(0, 256, (len(SEQUENCES), *SHAPE), dtype=np.uint8)) for _ in range(num)
        ]
    studies = pd.DataFrame({"patient_id": [f"sub-{i:04d}" for i in range(num)], "has_planes": False})
    studies[["shard", "row"]] = places
    for name in SEQUENCES:
        studies[f"has_{name}"] = rng.random(num) < 0.9
    studies.to_parquet(folder / "studies.parquet")
    (folder / "ingest.json").write_text(json.dumps({"sequences": SEQUENCES, "planes": []}))
    columns = tuple(FeatureColumn(name=f"x{i}") for i in range(24))
    config = NetworkConfig(
        sequences=SEQUENCES, shape=SHAPE, fact_columns=columns, table_columns=columns, text_encoder="none"
    )
    grade = rng.integers(0, 7, num).astype(np.float32)
    cases = Cases(
        arrays=StudyArrays.open(folder),
        facts=rng.normal(size=(num, 24)).astype(np.float32),
        table=rng.normal(size=(num, 24)).astype(np.float32),
        text=rng.normal(size=(num, config.text_width)).astype(np.float32),
        modality_present=np.ones((num, 3), dtype=bool),
        outcome=(grade >= POOR_FROM).astype(np.float32),
        grade=grade,
        split=np.array(["train"] * num_patients + ["validation"] * 16),
    )
    return cases, config


@contextmanager
def cluster(arguments: argparse.Namespace) -> Iterator[str]:
    """The cluster that was named, or one sparing as `make demo`'s, with a CPU for each worker."""
    if arguments.ray_address:
        yield arguments.ray_address
        return
    import ray

    os.environ.update(VARIABLES | auth_variables(None))
    ray.init(num_cpus=arguments.workers, include_dashboard=False, log_to_driver=False,
             object_store_memory=200 * 2**20)  # fmt: skip
    try:
        yield "auto"
    finally:
        ray.shutdown()


def _show(figures: dict[str, float]) -> None:
    table = Table(title="training loop")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    targets = {"ratio": ">= 0.95", "data_wait_share": "<= 0.05", "ms_per_patient_step": "<= 20"}
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}", targets.get(name, ""))
    Console().print(table)


if __name__ == "__main__":
    main()
