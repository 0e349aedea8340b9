"""What an epoch on 100,000 patients would cost on 8 to 64 GPUs: arithmetic, and a simulation of the steps.

    python -m benchmarks.scaling --json out.json

Counted on the default network: a patient's bytes, the gradients that are reduced, and the embeddings that are
gathered for negatives across ranks. Measured here, on one thread: the seconds of a patient's step and their
spread. A GPU is so much faster as `--speedup` says; that, and the bandwidths, are assumptions, which the rows
repeat. The simulation lets every rank draw the time of each step, waits for the slowest, adds a ring
all-reduce (2 (N - 1) / N of the gradients over the slowest link, Patarasuk and Yuan, JPDC 69:117, 2009) that
nothing hides, and lets a loader read ahead.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_results
from benchmarks.training_loop import made_cases
from willis.models.losses import total_loss
from willis.models.network import NetworkConfig, TrimodalNetwork
from willis.params import TrainParams
from willis.training.dataset import Cases, Share, collate
from willis.training.loop import reuse_freed_memory
from willis.training.start import subsets_to_ask

NUM_PATIENTS = 100_000
GPUS = (8, 16, 32, 64)
BATCH_PER_GPU = 32
READ_AHEAD = 4
FLOAT_BYTES = 4
SEED = 7


@dataclass(frozen=True)
class Step:
    """What one patient costs in a step.

    Attributes:
        num_bytes: read from storage.
        seconds: measured, of each timed step, per patient.
        gradient_bytes: reduced over all ranks in every step, whatever the batch.
        gathered_bytes: sent to every other rank.
    """

    num_bytes: int
    seconds: tuple[float, ...]
    gradient_bytes: int
    gathered_bytes: int


@dataclass(frozen=True)
class Machines:
    """The assumptions: bytes per second, seconds, and how much faster than one thread here a GPU is."""

    speedup: float
    read_bytes_s: float
    link_bytes_s: float
    latency_s: float
    gpus_per_node: int


def main() -> None:
    """Measure, simulate, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--speedup", type=float, default=50, help="of a GPU over one thread here")
    parser.add_argument(
        "--read-gb-s",
        type=float,
        nargs="+",
        default=[1.0, 25.0],
        help="per node: shared storage, and a page cache that holds the node's part",
    )
    parser.add_argument("--link-gb-s", type=float, default=3.0, help="of the network between nodes")
    parser.add_argument("--latency-us", type=float, default=20, help="of one hop of the ring")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    given = parser.parse_args()
    step = measured_step()
    rows = [
        row(step, _machines(given, read_gb_s), num_gpus) for read_gb_s in given.read_gb_s for num_gpus in GPUS
    ]
    _show(rows)
    if given.json:
        write_results(given.json, rows, given)


def _machines(given: argparse.Namespace, read_gb_s: float) -> Machines:
    return Machines(
        speedup=given.speedup,
        read_bytes_s=read_gb_s * 1e9,
        link_bytes_s=given.link_gb_s * 1e9,
        latency_s=given.latency_us * 1e-6,
        gpus_per_node=given.gpus_per_node,
    )


def measured_step(batch: int = 16, num_steps: int = 12) -> Step:
    """Count the network's bytes and time its forward and backward pass on one thread."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    torch.manual_seed(SEED)
    params = TrainParams()
    with tempfile.TemporaryDirectory() as folder:
        cases, config = made_cases(Path(folder), batch)
        network = TrimodalNetwork(config)
        made = collate(cases, Share(np.arange(batch), np.ones(batch, np.float32)), config)
        subsets, seconds = subsets_to_ask(config, params), []
        for _ in range(num_steps):
            started = time.perf_counter()
            scored = network.scored(made, network(made, subsets))
            total_loss(scored, params.lambda_contrast, params.lambda_align).total.backward()
            seconds.append((time.perf_counter() - started) / batch)
        num_bytes = _bytes_of_a_patient(cases, config)
    reduced = sum(parameter.numel() for parameter in network.parameters()) * FLOAT_BYTES
    return Step(num_bytes, tuple(seconds[2:]), reduced, 2 * params.contrast_width * FLOAT_BYTES)


def _bytes_of_a_patient(cases: Cases, config: NetworkConfig) -> int:
    volume = len(config.sequences) * int(np.prod(config.shape))
    vectors = cases.facts.shape[1] + cases.table.shape[1] + cases.text.shape[1]
    return volume + FLOAT_BYTES * vectors


def row(step: Step, machines: Machines, num_gpus: int) -> dict[str, Any]:
    """Simulate one epoch on so many GPUs."""
    num_steps = -(-NUM_PATIENTS // (num_gpus * BATCH_PER_GPU))
    reduce_s = _all_reduce_s(step, machines, num_gpus)
    read_s = BATCH_PER_GPU * step.num_bytes * min(num_gpus, machines.gpus_per_node) / machines.read_bytes_s
    compute_s = BATCH_PER_GPU * statistics.median(step.seconds) / machines.speedup
    epoch_s, waited_s = simulate(step, machines, num_gpus, num_steps, read_s, reduce_s)
    alone_s = num_steps * num_gpus * compute_s
    return {
        "task": "scaling", "model": "willis",
        "subset": f"{num_gpus} GPUs, {machines.read_bytes_s / 1e9:g} GB/s", "num_patients": NUM_PATIENTS,
        "metric": "epoch_s", "mean": epoch_s, "num_steps": num_steps,
        "read_bytes_per_step": BATCH_PER_GPU * num_gpus * step.num_bytes,
        "all_reduce_bytes_per_step": int(2 * (num_gpus - 1) / num_gpus * step.gradient_bytes),
        "compute_s_per_step": compute_s, "all_reduce_s_per_step": reduce_s, "read_s_per_step": read_s,
        "waiting_for_data_share": waited_s / epoch_s, "efficiency": alone_s / num_gpus / epoch_s,
        "assumed": vars(machines),
    }  # fmt: skip


def _all_reduce_s(step: Step, machines: Machines, num_gpus: int) -> float:
    """A ring of N: 2 (N - 1) hops, each with an N-th of the gradients; then the embeddings are gathered."""
    hops = 2 * (num_gpus - 1)
    gathered = BATCH_PER_GPU * (num_gpus - 1) * step.gathered_bytes
    sent = hops / num_gpus * step.gradient_bytes + gathered
    return hops * machines.latency_s + sent / machines.link_bytes_s


def simulate(
    step: Step, machines: Machines, num_gpus: int, num_steps: int, read_s: float, reduce_s: float
) -> tuple[float, float]:
    """Return the seconds of an epoch, and how many of them the ranks waited for data (mean over ranks).

    Every rank's loader reads its batches one after the other, at most `READ_AHEAD` of them ahead of the rank.
    """
    rng = np.random.default_rng(SEED)
    drawn = rng.choice(np.array(step.seconds), size=(num_steps, num_gpus)) * BATCH_PER_GPU / machines.speedup
    now, waited = 0.0, 0.0
    ready = np.zeros(num_gpus)
    taken: list[float] = []
    for number in range(num_steps):
        may_begin = taken[number - READ_AHEAD] if number >= READ_AHEAD else 0.0
        ready = np.maximum(ready, may_begin) + read_s
        begins = np.maximum(now, ready)
        waited += float((begins - now).mean())
        taken.append(float(begins.max()))
        now = float((begins + drawn[number]).max()) + reduce_s
    return now, waited


def _show(rows: list[dict[str, Any]]) -> None:
    columns = (
        "GB/s", "GPUs", "epoch s", "read MB", "reduce MB", "compute ms", "reduce ms", "read ms", "waiting",
        "efficiency",
    )  # fmt: skip
    table = Table(*columns, title="an epoch on 100,000 patients; bytes and times per step")
    for found in rows:
        table.add_row(
            f"{found['assumed']['read_bytes_s'] / 1e9:g}",
            found["subset"].partition(" ")[0],
            f"{found['mean']:.1f}",
            f"{found['read_bytes_per_step'] / 1e6:.0f}",
            f"{found['all_reduce_bytes_per_step'] / 1e6:.1f}",
            f"{found['compute_s_per_step'] * 1e3:.1f}",
            f"{found['all_reduce_s_per_step'] * 1e3:.1f}",
            f"{found['read_s_per_step'] * 1e3:.1f}",
            f"{found['waiting_for_data_share']:.2f}",
            f"{found['efficiency']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
