"""The pre-training loop with the other methods: what holds of BrainMVP holds of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.fixtures.killed import KilledError, killed_in
from willis.errors import ParamsError, StepError
from willis.imaging.shards import StudyArrays
from willis.models.network import TrimodalNetwork
from willis.models.pretrained import file_sha256
from willis.params import PretrainParams, TrainParams
from willis.pretraining.loop import PretrainJob, PretrainRecord, collate_views, new_network, pretrain_encoder
from willis.pretraining.studies import read_splits
from willis.settings import Settings
from willis.steps.pretrain import PretrainSummary, pretrain
from willis.training.checkpoints import TrainState
from willis.training.dataset import shares
from willis.training.loop import Tick, World
from willis.training.start import start

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("mics", "imputmae")
GRID = (3, 4, 2)


def _params(method: str) -> PretrainParams:
    shared = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "num_workers": 1}
    return PretrainParams(method=method, bank=40, **shared)  # type: ignore[arg-type]


def _job(cohort: TinyCohort, out: Path, method: str) -> PretrainJob:
    arrays = StudyArrays.open(cohort.ingest)
    return PretrainJob.on(arrays, read_splits(cohort.ingest, arrays), _params(method), out / "checkpoints")


Taught = tuple[str, Path, TrainState[PretrainRecord]]


@pytest.fixture(scope="module", params=METHODS)
def taught(
    request: pytest.FixtureRequest, tiny_ingest: TinyCohort, tmp_path_factory: pytest.TempPathFactory
) -> Taught:
    """Name, folder of the step, and the state that its run left."""
    out = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("willis.steps.pretrain.train_on_cluster", lambda job, *_: job.run(World(), _quiet))
        pretrain(tiny_ingest.ingest, out, _params(request.param), Settings(ray_address="127.0.0.1:1"))
    state = _job(tiny_ingest, out, request.param).checkpoints.newest()
    assert state is not None and state.finished
    return request.param, out, state


def _quiet(tick: Tick[PretrainRecord]) -> None:
    """Nobody listens."""


def test_reconstruction_improves_and_does_so_on_studies_that_were_not_learned_from(
    taught: Taught,
) -> None:
    first, last = taught[2].history[0], taught[2].history[-1]
    assert last.masked_loss == last.reconstruction_loss < 0.95 * first.reconstruction_loss
    assert first.val_loss is not None and last.val_loss is not None
    assert last.val_loss < 0.95 * first.val_loss


def test_the_step_writes_weights_that_training_starts_from_and_a_picture(
    taught: Taught, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    from matplotlib.image import imread

    name, out, state = taught
    weights = out / "encoder.safetensors"
    summary = PretrainSummary.model_validate_json((out / "pretrain.json").read_text())
    assert (summary.method, summary.num_patients) == (name, 90)
    assert summary.encoder_sha256 == file_sha256(weights)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [PretrainRecord.model_validate_json(line) for line in lines] == list(state.history)
    assert "template_loss" not in lines[0]
    assert np.ptp(imread(out / "reconstructions.png")[..., :3]) > 0.5
    job = tiny_job(tiny_ingest, tmp_path, TrainParams(width=32, contrast_width=16, num_workers=1))
    network = TrimodalNetwork(job.config)
    start(network, job.cases, job.cases.rows("train", labelled_only=False), weights)
    assert network.image is not None
    for key, value in network.image.volume.state_dict().items():
        assert key.startswith("body.pool") or torch.equal(value, state.best[f"encoder.{key}"]), key


def test_a_run_that_is_cut_off_ends_as_if_nothing_had_happened(
    taught: Taught, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    name, _, state = taught
    job = _job(tiny_ingest, tmp_path, name)

    with pytest.raises(KilledError):
        pretrain_encoder(job, World(), killed_in(2))
    resumed = pretrain_encoder(job, World())
    assert resumed.best.keys() == state.best.keys()
    for key, value in state.best.items():
        torch.testing.assert_close(resumed.best[key], value, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_names_the_batch(
    taught: Taught, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    name, _, state = taught
    job = _job(tiny_ingest, tmp_path, name)
    spoiled = {key: value * torch.nan if value.is_floating_point() else value
               for key, value in state.network.items()}  # fmt: skip
    job.checkpoints.save(replace(state, network=spoiled, history=state.history[:1], finished=False))
    with pytest.raises(StepError, match=r"nan in epoch 1, step 0 \(masked nan.*rows \d+, .*studies.parquet"):
        pretrain_encoder(job, World())


def test_a_run_without_a_method_is_refused(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"method is 'none'; .*brainmvp, mics, imputmae .*pretrain.method"):
        _job(tiny_ingest, tmp_path, "none")


def _steps(job: PretrainJob, rank: int, world: int, *, parallel: bool) -> dict[str, torch.Tensor]:
    """The gradients of a second step, after a first one was taken in, and all that the network keeps."""
    torch.manual_seed(0)
    network = new_network(job)
    network.start(job.arrays, job.rows("train"))
    model = network
    if parallel:
        model = torch.nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)
    for share in shares(job.rows("train"), 23, rank, world)[:2]:
        network.zero_grad()
        answer = model(collate_views(job, share, GRID, epoch=0), True).joined()
        losses = network.losses(answer, job.params, 1.0)
        losses.total.backward()
        network.follow(answer, job.params)
    gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    return {**network.state_dict(), **{f"of {key}": value for key, value in gradients.items()},
            "loss": losses.total.detach()}  # fmt: skip


def _one_rank(rank: int, cohort: TinyCohort, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    for method in METHODS:
        torch.save(_steps(_job(cohort, folder, method), rank, 2, parallel=True), folder / f"{method}-{rank}")
    dist.destroy_process_group()


def test_losses_gradients_and_bank_of_two_ranks_equal_one_process_on_the_joined_batch(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    mp.spawn(_one_rank, args=(tiny_ingest, tmp_path), nprocs=2)
    for method in METHODS:
        alone = _steps(_job(tiny_ingest, tmp_path, method), 0, 1, parallel=False)
        for rank in range(2):
            theirs = torch.load(tmp_path / f"{method}-{rank}", weights_only=True)
            assert theirs.keys() == alone.keys()
            for key, value in alone.items():
                torch.testing.assert_close(theirs[key], value, rtol=2e-3, atol=2e-5, msg=f"{method} {key}")
