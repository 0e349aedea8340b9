"""The pre-training loop in plain torch: the same code in a bare process and on every rank of a cluster.

Everything random is drawn from (seed, epoch, row), as in `willis.training.dataset`: a run that was killed and
goes on, or that uses another number of workers, hides the same blocks of the same studies in the same order.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from willis.errors import CohortError, StepError
from willis.imaging.shards import StudyArrays
from willis.params import PretrainParams
from willis.pretraining.masking import Triple, block_grid, check_block
from willis.pretraining.method import Method, MethodLosses, PerStudy, Studies
from willis.pretraining.methods import method_of
from willis.training.checkpoints import Checkpoints, TrainState
from willis.training.dataset import Rows, Share, ahead, epoch_order, num_steps, shares
from willis.training.loop import Tick, World, arithmetic, copied, reuse_freed_memory
from willis.training.optimizer import learning_rate, make_optimizer


class PretrainRecord(BaseModel):
    """One line of metrics.jsonl; terms that the method does not have are None.

    Attributes:
        reconstruction_loss: how well volumes are rebuilt, weighted as in the loss; the terms are unweighted.
        template_loss: `brainmvp`, MSE of view A, whose hidden blocks the template fills.
        cross_loss: `brainmvp`, MSE of view B.
        contrast_loss: `brainmvp`, of the two views, also while it does not count.
        masked_loss: `mics` and `imputmae`, MSE over what is hidden.
        consistency_loss: `mics`, of one sequence with the other.
        align_loss: `mics`, of the discriminator; log C where it finds nothing in C sequences.
        val_loss: reconstruction on validation, with masks that stay the same; None without such studies.
        num_patients: studies that were learned from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    reconstruction_loss: float
    template_loss: float | None = None
    cross_loss: float | None = None
    contrast_loss: float | None = None
    masked_loss: float | None = None
    consistency_loss: float | None = None
    align_loss: float | None = None
    val_loss: float | None = None
    val_template_loss: float | None = None
    val_cross_loss: float | None = None
    val_contrast_loss: float | None = None
    val_masked_loss: float | None = None
    val_consistency_loss: float | None = None
    val_align_loss: float | None = None
    learning_rate: float
    gradient_norm: float
    num_patients: int
    seconds: float


OnTick = Callable[[Tick[PretrainRecord]], None]


@dataclass(frozen=True)
class PretrainJob:
    """One pre-training run: volumes, who is in which split, parameters, where checkpoints go."""

    step: ClassVar[str] = "pretrain"
    record: ClassVar[type[PretrainRecord]] = PretrainRecord

    arrays: StudyArrays
    split: npt.NDArray[np.str_]
    params: PretrainParams
    checkpoints: Checkpoints[PretrainRecord]

    @classmethod
    def on(
        cls, arrays: StudyArrays, split: npt.NDArray[np.str_], params: PretrainParams, folder: Path
    ) -> Self:
        """A run that goes on from the checkpoints in `folder`, if they are of this very data.

        Args:
            arrays: volumes.
            split: (N,) the split of each study; only train is learned from, validation looked at.
            params: section `pretrain`.
            folder: of the checkpoints.

        Raises:
            ParamsError: there is no method, or the blocks do not fit the encoder.
        """
        method_of(params)
        check_block(params)
        summed = hashlib.sha256((arrays.folder / "ingest.json").read_bytes())
        summed.update("\n".join([params.model_dump_json(), *arrays.patient_ids, *split.tolist()]).encode())
        checkpoints = Checkpoints(folder, summed.hexdigest(), record=PretrainRecord)
        return cls(arrays, split, params, checkpoints)

    def rows(self, split: str) -> Rows:
        """Studies of one split that have a sequence to rebuild."""
        return np.flatnonzero((self.split == split) & self.arrays.sequence_present.any(axis=1))

    def shape(self) -> Triple:
        """Voxels of a volume."""
        x, y, z = self.arrays.volume(0).shape[1:]
        return x, y, z

    def run(self, world: World, on_tick: OnTick) -> TrainState[PretrainRecord]:
        """`pretrain_encoder`, as a cluster calls it."""
        return pretrain_encoder(self, world, on_tick)


def pretrain_encoder(
    job: PretrainJob, world: World, on_tick: OnTick = lambda tick: None
) -> TrainState[PretrainRecord]:
    """Pre-train to the last epoch, from a checkpoint if one is there.

    Args:
        job: the same on every rank.
        world: this rank.
        on_tick: called after every step and epoch.

    Returns:
        The last state, whose weights are the ones to use: validation chooses nothing.

    Raises:
        BundleError: the newest checkpoint is of another architecture.
        CohortError: nobody in training has a sequence.
        StepError: the loss is no longer finite; names the batch.
    """
    if len(job.rows("train")) < 2:
        raise CohortError(
            f"{len(job.rows('train'))} studies of the train split have a sequence to rebuild; two are "
            "needed: make the cohort larger or set params.yaml: pretrain.method to none"
        )
    reuse_freed_memory()
    run = _Run(job, world, on_tick)
    state = run.resume()
    while not state.finished:
        state = run.epoch(state)
        if world.rank == 0 and (state.finished or state.next_epoch % job.params.checkpoint_every == 0):
            job.checkpoints.save(state)
    return state


def trained_network(job: PretrainJob, state: TrainState[PretrainRecord]) -> Method[Any, Any]:
    """The network as a finished run left it, ready to be looked at."""
    network = new_network(job)
    network.load_state_dict(state.best)
    return network.eval()


def new_network(job: PretrainJob) -> Method[Any, Any]:
    """The network of a run before its first step, initialised by torch's state of chance."""
    return method_of(job.params).of(job.arrays.sequences, job.shape(), job.params)


def phase(params: PretrainParams, step: int, steps: int) -> tuple[bool, float]:
    """Whether one sequence may stand for another, and the weight of the contrast, at a step from 0."""
    cross = step >= round(params.template_share * steps)
    return cross, float(step >= steps - round(params.contrast_share * steps))


def collate_views(job: PretrainJob, share: Share, grid: Triple, epoch: int) -> PerStudy:
    """Copy one share of a batch out of the memory-mapped files, and draw what is asked of each study.

    Args:
        job: the run.
        share: rows of this rank.
        grid: blocks along each axis.
        epoch: other epochs hide other blocks.
    """
    params = job.params
    studies = Studies(
        volume=np.stack([job.arrays.volume(int(row)) for row in share.rows]),
        present=job.arrays.sequence_present[share.rows],
        rows=share.rows,
        weight=share.weight,
        rngs=[np.random.default_rng([params.seed, epoch, 1 + int(row)]) for row in share.rows],
    )
    views: PerStudy = method_of(params).asked(studies, grid, params.mask_rate)
    return views


class _Run:
    """Network, optimiser and rows of one run on one rank."""

    def __init__(self, job: PretrainJob, world: World, on_tick: OnTick) -> None:
        self.job, self.world, self.on_tick = job, world, on_tick
        self.rows, self.validation = job.rows("train"), job.rows("validation")
        torch.manual_seed(job.params.seed)
        self.network = new_network(job)
        self.network.start(job.arrays, self.rows)
        self.network.to(world.device)
        self.model: nn.Module = self.network
        if world.size > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.network, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        self.optimizer = make_optimizer(self.network, job.params)
        self.grid = block_grid(self.network.padded, job.params.block)
        self.steps_per_epoch = num_steps(len(self.rows), job.params.batch_size)
        self.steps = self.steps_per_epoch * job.params.epochs

    def resume(self) -> TrainState[PretrainRecord]:
        """The newest whole checkpoint, or the start."""
        state = self.job.checkpoints.newest()
        if state is None:
            return self.state((), finished=False)
        self.job.checkpoints.restore(state, self.network)
        self.optimizer.load_state_dict(state.optimizer)
        return state

    def state(self, history: tuple[PretrainRecord, ...], *, finished: bool) -> TrainState[PretrainRecord]:
        """What a checkpoint holds; the last epoch is the one to use."""
        weights = copied(self.network)
        return TrainState(weights, self.optimizer.state_dict(), weights, len(history) - 1, history, finished)

    def epoch(self, before: TrainState[PretrainRecord]) -> TrainState[PretrainRecord]:
        """Learn from every study once, and look at validation."""
        number = before.next_epoch
        started = time.perf_counter()
        results = [
            self.step(number, at, share, views) for at, (share, views) in enumerate(self.batches(number))
        ]
        means = dict(zip(results[0], np.mean([list(one.values()) for one in results], axis=0), strict=True))
        record = PretrainRecord(
            epoch=number,
            loss=means.pop("total"),
            gradient_norm=means.pop("gradient_norm"),
            reconstruction_loss=self.reconstruction(means),
            **{f"{name}_loss": value for name, value in means.items()},
            **self.validated(),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            num_patients=len(self.rows),
            seconds=time.perf_counter() - started,
        )
        done = number + 1
        self.on_tick(Tick(number, done * self.steps_per_epoch, self.steps, record))
        return self.state((*before.history, record), finished=done == self.job.params.epochs)

    def batches(self, epoch: int) -> Iterator[tuple[Share, PerStudy]]:
        """This rank's batches of one epoch; the next is made while one is used."""
        order = epoch_order(self.rows, self.job.params.seed, epoch)
        todo = shares(order, self.job.params.batch_size, self.world.rank, self.world.size)
        return ahead((share, collate_views(self.job, share, self.grid, epoch)) for share in todo)

    def step(self, epoch: int, at: int, share: Share, views: PerStudy) -> dict[str, float]:
        """One optimisation step; the losses and the norm of the gradient."""
        params, now = self.job.params, epoch * self.steps_per_epoch + at
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(params, now, self.steps)
        cross, contrast = phase(params, now, self.steps)
        answer = self.answer(self.model, views, cross)
        losses: MethodLosses = self.network.losses(answer, params, contrast)
        if not bool(torch.isfinite(losses.total)):
            raise StepError(_not_finite(epoch, at, share, losses))
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), params.clip_norm)
        self.optimizer.step()
        self.network.follow(answer, params)
        self.on_tick(Tick(epoch, now + 1, self.steps))
        terms = {"total": losses.total, **losses.terms(), "gradient_norm": norm}
        return {name: float(term.detach()) for name, term in terms.items()}

    def answer(self, model: nn.Module, views: PerStudy, cross: bool) -> PerStudy:
        """What a batch of all ranks is answered; the same on every rank."""
        with arithmetic(self.job.params, self.world):
            answer: PerStudy = model(views.to(self.world.device), cross)
        return answer.joined()

    @torch.no_grad()
    def validated(self) -> dict[str, float]:
        """Validation losses over all ranks, each study counted once, masks the same in every epoch."""
        if not len(self.validation):
            return {}
        self.network.eval()
        sums: dict[str, float] = {}
        for share in shares(self.validation, self.job.params.batch_size, self.world.rank, self.world.size):
            answer = self.answer(self.network, collate_views(self.job, share, self.grid, epoch=0), True)
            found: MethodLosses = self.network.losses(answer, self.job.params, 1.0)
            number = float(answer.weight.sum())
            for name, term in found.terms().items():
                sums[name] = sums.get(name, 0.0) + number * float(term)
        self.network.train()
        means = {name: total / len(self.validation) for name, total in sums.items()}
        return {"val_loss": self.reconstruction(means),
                **{f"val_{name}_loss": mean for name, mean in means.items()}}  # fmt: skip

    def reconstruction(self, terms: Mapping[str, float]) -> float:
        """How well volumes are rebuilt, weighted as in the loss."""
        return sum(weight * terms[name] for name, weight in self.network.reconstruction.items())


def _not_finite(epoch: int, at: int, share: Share, losses: MethodLosses) -> str:
    rows = ", ".join(str(row) for row in share.rows[share.weight > 0])
    said = ", ".join(f"{name} {float(term.detach()):g}" for name, term in losses.terms().items())
    total = float(losses.total.detach())
    return (
        f"the loss is {total:g} in epoch {epoch}, step {at} ({said}); the batch is rows {rows} of "
        "studies.parquet: look at them, or lower params.yaml: pretrain.learning_rate; the checkpoints before "
        "it are kept"
    )
