"""What an encoder costs: one optimisation step per patient, with every image and table encoder, in turns.

    python -m benchmarks.encoders --json out.json

One thread; random codes at the canonical grid, for speed does not depend on what they show. The networks take
turns step by step, so that whatever else runs on the machine meets all of them; a figure is the median of CPU
time over the rounds but the first two, a ratio the median of each round's ratio to the default network. The
frozen encoder has met every study before, as in all epochs but the first.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.results import figure_rows, write_results
from benchmarks.training_loop import made_cases
from willis.models.losses import total_loss
from willis.models.network import Batch, NetworkConfig, TrimodalNetwork
from willis.params import TrainParams
from willis.training.dataset import Share, collate
from willis.training.loop import reuse_freed_memory
from willis.training.optimizer import make_optimizer
from willis.training.start import subsets_to_ask

DEFAULT = "cnn (default)"
CHANGES: dict[str, dict[str, str]] = {
    "cnn_small": {"image_encoder": "cnn_small"},
    DEFAULT: {},
    "cnn_large": {"image_encoder": "cnn_large"},
    "swin": {"image_encoder": "swin"},
    "cnn, frozen": {},
    "cnn, ft_transformer": {"table_encoder": "ft_transformer"},
}
WARM_UP = 2


@dataclass(frozen=True)
class Contender:
    """A network and its optimiser."""

    network: TrimodalNetwork
    optimizer: torch.optim.Optimizer


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--patients", type=int, default=16, help="in a batch")
    parser.add_argument("--rounds", type=int, default=20, help="two at least")
    arguments = parser.parse_args()
    figures = measure(arguments.patients, arguments.rounds)
    _show(figures)
    if arguments.json:
        rows = [
            row
            for name in figures
            for row in figure_rows("encoders", name, figures[name], arguments.patients)
        ]
        write_results(arguments.json, rows, arguments)


def measure(num_patients: int, rounds: int) -> dict[str, dict[str, float]]:
    """Let all networks take a step in turn, `rounds` times."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    params = TrainParams()
    with tempfile.TemporaryDirectory() as folder:
        cases, config = made_cases(Path(folder), num_patients)
        rows = cases.rows("train", labelled_only=False)
        batch = collate(cases, Share(rows, cases.outcome[rows] * 0 + 1), config)
    contenders = {name: contender(name, config, params) for name in CHANGES}
    seconds: dict[str, list[float]] = {name: [] for name in CHANGES}
    for _ in range(rounds + WARM_UP):
        for name, one in contenders.items():
            seconds[name].append(step_seconds(one, batch, params))
    return {
        name: figures_of(contenders[name].network, spent[WARM_UP:], seconds[DEFAULT][WARM_UP:], num_patients)
        for name, spent in seconds.items()
    }


def contender(name: str, config: NetworkConfig, params: TrainParams) -> Contender:
    """The default network but for one encoder."""
    torch.manual_seed(0)
    network = TrimodalNetwork(config.model_copy(update=CHANGES[name]))
    if name.endswith("frozen"):
        assert network.image is not None, "the default reads images"
        network.image.volume.freeze()
    return Contender(network, make_optimizer(network, params))


def step_seconds(one: Contender, batch: Batch, params: TrainParams) -> float:
    """CPU time of one optimisation step."""
    subsets = subsets_to_ask(one.network.config, params)
    started = time.process_time()
    scored = one.network.scored(batch, one.network(batch, subsets))
    one.optimizer.zero_grad(set_to_none=True)
    total_loss(scored, params.lambda_contrast, params.lambda_align).total.backward()
    torch.nn.utils.clip_grad_norm_(one.network.parameters(), params.clip_norm)
    one.optimizer.step()
    return time.process_time() - started


def figures_of(
    network: TrimodalNetwork, seconds: list[float], default: list[float], num_patients: int
) -> dict[str, float]:
    """One row of the table."""
    ratios = [mine / its for mine, its in zip(seconds, default, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "num_parameters": float(network.num_parameters()),
        "ms_per_patient_step": 1e3 * statistics.median(seconds) / num_patients,
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def _show(figures: dict[str, dict[str, float]]) -> None:
    table = Table(title="encoders, one thread")
    table.add_column("network")
    for name in next(iter(figures.values())):
        table.add_column(name, justify="right")
    for name, row in figures.items():
        table.add_row(name, *(f"{value:,.0f}" if value > 1e3 else f"{value:.2f}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
