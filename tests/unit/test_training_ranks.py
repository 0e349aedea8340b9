"""Two ranks are one process on the joined batch: loss, gradients, and no parameter left unused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.networks import network_with_opinions
from willis.models.losses import ClassWeights, join_ranks, total_loss
from willis.models.network import Batch, TrimodalNetwork
from willis.params import TrainParams
from willis.training.dataset import collate, shares, with_dropout
from willis.training.start import class_weights, subsets_to_ask

PARAMS = TrainParams(
    width=32,
    contrast_width=16,
    dropout=0.0,
    modality_dropout=0.8,
    sequence_dropout=0.5,
    batch_size=23,
    lambda_subsets=0.7,
    roads="by_pattern",
)


def _network_and_batch(
    cohort: TinyCohort, out: Path, changes: dict[str, str], rank: int, world: int
) -> tuple[TrimodalNetwork, Batch, ClassWeights | None]:
    job = tiny_job(cohort, out, PARAMS.model_copy(update=changes))
    torch.manual_seed(0)
    network = network_with_opinions(job.config)
    share = shares(job.cases.rows("train", labelled_only=False), PARAMS.batch_size, rank, world)[0]
    batch = with_dropout(collate(job.cases, share, job.config), share, PARAMS, epoch=0)
    return network, batch, class_weights(job.cases, job.params)


def _step(
    network: TrimodalNetwork,
    model: torch.nn.Module,
    batch: Batch,
    classes: ClassWeights | None,
    weight: float,
) -> float:
    scored = join_ranks(network.scored(batch, model(batch, subsets_to_ask(network.config, PARAMS))))
    losses = total_loss(scored, weight, weight, classes)
    losses.total.backward()
    return float(losses.total.detach())


def _one_rank(rank: int, cohort: TinyCohort, folder: Path, changes: dict[str, str]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    network, batch, classes = _network_and_batch(cohort, folder, changes, rank, 2)
    model = torch.nn.parallel.DistributedDataParallel(network)
    loss = _step(network, model, batch, classes, weight=0.5)
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    # Steps that only fill ranks, only lack outcomes or switch losses off would stop DDP if a parameter
    # were left out: it is not told to look for unused ones.
    for unusual in (
        replace(batch, weight=torch.zeros_like(batch.weight)),
        replace(batch, outcome=torch.full_like(batch.outcome, torch.nan)),
        replace(batch, modality_present=torch.zeros_like(batch.modality_present)),
    ):
        _step(network, model, unusual, classes, weight=0.0)
    torch.save((loss, gradients), folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "vdafm_pooled"},
        {"fusion": "vdafm_token"},
        {"fusion": "late", "class_weighting": "balanced"},
        {"fusion": "concat", "outcome": "binary", "class_weighting": "balanced"},
    ],
)
def test_loss_and_gradients_of_two_ranks_equal_one_process_on_the_joined_batch(
    tiny_ingest: TinyCohort, tmp_path: Path, changes: dict[str, str]
) -> None:
    mp.spawn(_one_rank, args=(tiny_ingest, tmp_path, changes), nprocs=2)
    network, batch, classes = _network_and_batch(tiny_ingest, tmp_path, changes, 0, 1)
    loss = _step(network, network, batch, classes, weight=0.5)
    for rank in range(2):
        their_loss, gradients = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert abs(their_loss - loss) < 1e-5
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
