"""The pre-training loop in a bare process: what it learns from, its restarts, what it refuses, its ranks."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.fixtures.arrays import TinyCohort
from tests.fixtures.killed import KilledError, killed_in
from willis.errors import CohortError, ShapeError, StepError
from willis.imaging.shards import StudyArrays
from willis.params import PretrainParams
from willis.pretraining.brainmvp import BrainMVP, brainmvp_loss
from willis.pretraining.loop import PretrainJob, PretrainRecord, collate_views, pretrain_encoder
from willis.pretraining.studies import read_splits
from willis.training.checkpoints import TrainState
from willis.training.dataset import shares
from willis.training.loop import World
from willis.training.start import start_templates

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = PretrainParams(method="brainmvp", epochs=6, batch_size=8, learning_rate=3e-3, num_workers=1)
GRID = (3, 4, 2)


def _job(cohort: TinyCohort, out: Path, params: PretrainParams = PARAMS) -> PretrainJob:
    arrays = StudyArrays.open(cohort.ingest)
    return PretrainJob.on(arrays, read_splits(cohort.ingest, arrays), params, out / "checkpoints")


@pytest.fixture(scope="module")
def course(tiny_ingest: TinyCohort, tmp_path_factory: pytest.TempPathFactory) -> TrainState[PretrainRecord]:
    return pretrain_encoder(_job(tiny_ingest, tmp_path_factory.mktemp("course")), World())


def _metrics(state: TrainState[PretrainRecord]) -> list[dict[str, float]]:
    return [record.model_dump(exclude={"seconds"}) for record in state.history]


def test_reconstruction_improves_and_does_so_on_studies_that_were_not_learned_from(
    course: TrainState[PretrainRecord],
) -> None:
    first, last = course.history[0], course.history[-1]
    assert last.reconstruction_loss < 0.9 * first.reconstruction_loss
    assert last.cross_loss < 0.8 * first.cross_loss
    assert first.val_cross_loss is not None and last.val_cross_loss is not None
    assert last.val_cross_loss < 0.8 * first.val_cross_loss


def test_the_weights_of_the_last_epoch_are_kept(course: TrainState[PretrainRecord]) -> None:
    assert course.finished and course.best_epoch == 5
    for name, value in course.network.items():
        assert torch.equal(course.best[name], value)


def test_a_run_that_is_cut_off_ends_as_if_nothing_had_happened(
    course: TrainState[PretrainRecord], tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = _job(tiny_ingest, tmp_path)

    with pytest.raises(KilledError):
        pretrain_encoder(job, World(), killed_in(2))
    resumed = pretrain_encoder(job, World())
    assert _metrics(resumed) == _metrics(course)
    for name, value in course.best.items():
        torch.testing.assert_close(resumed.best[name], value, rtol=0, atol=0)


def test_outcomes_and_everything_but_the_training_split_teach_nothing(
    course: TrainState[PretrainRecord], tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    ingest = shutil.copytree(tiny_ingest.ingest, tmp_path / "ingest")
    splits = pd.read_parquet(ingest / "splits.parquet")
    arrays = StudyArrays.open(ingest)
    hidden = np.flatnonzero(splits["split"] != "train")
    for row in hidden:  # written over in place
        shard, at = arrays._places[row]
        volumes = np.load(ingest / "shards" / f"volumes-{shard:03d}.npy", mmap_mode="r+")
        volumes[at] = 200
        volumes.flush()
    changed = pretrain_encoder(_job(TinyCohort(ingest, tmp_path / "no-labels", 160), tmp_path), World())
    for name, value in course.best.items():
        torch.testing.assert_close(changed.best[name], value, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_last_checkpoint(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = _job(tiny_ingest, tmp_path)
    pretrain_encoder(replace(job, params=PARAMS.model_copy(update={"epochs": 2})), World())
    state = job.checkpoints.newest()
    assert state is not None
    spoiled = {name: value * torch.nan if value.is_floating_point() else value
               for name, value in state.network.items()}  # fmt: skip
    job.checkpoints.save(replace(state, network=spoiled, finished=False))
    kept = sorted(path.name for path in job.checkpoints.folder.glob("epoch-*"))
    with pytest.raises(StepError, match=r"the loss is nan in epoch 2, step 0 .*rows \d+, .*studies.parquet"):
        pretrain_encoder(job, World())
    assert sorted(path.name for path in job.checkpoints.folder.glob("epoch-*")) == kept


def test_a_training_split_without_volumes_is_refused(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    job = replace(_job(tiny_ingest, tmp_path), split=np.full(160, "test"))
    with pytest.raises(CohortError, match=r"0 studies of the train split .*pretrain.method to none"):
        pretrain_encoder(job, World())


def test_without_validation_studies_there_is_no_validation_loss(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = _job(tiny_ingest, tmp_path, PARAMS.model_copy(update={"epochs": 1}))
    split = np.where(job.split == "validation", "test", job.split)
    assert pretrain_encoder(replace(job, split=split), World()).history[0].val_loss is None


def test_a_study_in_no_split_is_refused(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    ingest = shutil.copytree(tiny_ingest.ingest, tmp_path / "ingest")
    splits = pd.read_parquet(ingest / "splits.parquet")
    splits.iloc[3:].to_parquet(ingest / "splits.parquet")
    with pytest.raises(ShapeError, match=r"3 of 160 studies .*splits.parquet"):
        read_splits(ingest, StudyArrays.open(ingest))


def _step(
    job: PretrainJob, rank: int, world: int, *, parallel: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network = BrainMVP(job.arrays.sequences, job.shape(), job.params.block)
    start_templates(network.encoder, job.arrays, job.rows("train"))
    model = torch.nn.parallel.DistributedDataParallel(network) if parallel else network
    share = shares(job.rows("train"), 23, rank, world)[0]
    rebuilt = model(collate_views(job, share, GRID, epoch=0), True)
    losses = brainmvp_loss(rebuilt.joined(), job.params.tau, 1.0)
    losses.total.backward()
    return float(losses.total.detach()), {n: p.grad for n, p in network.named_parameters()}


def _one_rank(rank: int, cohort: TinyCohort, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(_step(_job(cohort, folder), rank, 2, parallel=True), folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_loss_and_gradients_of_two_ranks_equal_one_process_on_the_joined_batch(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    mp.spawn(_one_rank, args=(tiny_ingest, tmp_path), nprocs=2)
    loss, gradients = _step(_job(tiny_ingest, tmp_path), 0, 1, parallel=False)
    for rank in range(2):
        their_loss, theirs = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert their_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
