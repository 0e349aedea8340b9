"""The pre-training loop in plain torch: the same code in a bare process and on every rank of a cluster.

Everything random is drawn from (seed, epoch, row), as in `willis.training.dataset`: a run that was killed and
goes on, or that uses another number of workers, hides the same blocks of the same studies in the same order.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from willis.errors import CohortError, StepError
from willis.imaging.shards import StudyArrays
from willis.params import PretrainParams
from willis.pretraining.brainmvp import TEMPLATE_WEIGHT, BrainMVP, ViewLosses, Views, brainmvp_loss
from willis.pretraining.masking import Triple, as_tensors, block_grid, check_block, draw
from willis.training.checkpoints import Checkpoints, TrainState
from willis.training.dataset import Rows, Share, ahead, epoch_order, num_steps, shares
from willis.training.loop import Tick, World, arithmetic, copied, reuse_freed_memory
from willis.training.optimizer import learning_rate, make_optimizer
from willis.training.start import start_templates


class PretrainRecord(BaseModel):
    """One line of metrics.jsonl.

    Attributes:
        template_loss: MSE of view A, whose hidden blocks the template fills; unweighted, as the next two.
        cross_loss: MSE of view B.
        contrast_loss: of the two views, also while it does not count.
        val_template_loss: the same on validation, with masks that stay the same; None without such studies.
        num_patients: studies that were learned from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    template_loss: float
    cross_loss: float
    contrast_loss: float
    val_template_loss: float | None = None
    val_cross_loss: float | None = None
    val_contrast_loss: float | None = None
    learning_rate: float
    gradient_norm: float
    num_patients: int
    seconds: float

    @property
    def reconstruction_loss(self) -> float:
        """Both views on training, weighted as in the loss."""
        return TEMPLATE_WEIGHT * self.template_loss + self.cross_loss

    @property
    def val_loss(self) -> float | None:
        """The same on validation; None without such studies."""
        if self.val_template_loss is None or self.val_cross_loss is None:
            return None
        return TEMPLATE_WEIGHT * self.val_template_loss + self.val_cross_loss


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
            ParamsError: the blocks do not fit the encoder.
        """
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


def trained_network(job: PretrainJob, state: TrainState[PretrainRecord]) -> BrainMVP:
    """The network as a finished run left it, ready to be looked at."""
    network = new_network(job)
    network.load_state_dict(state.best)
    return network.eval()


def new_network(job: PretrainJob) -> BrainMVP:
    """The network of a run before its first step, initialised by torch's state of chance."""
    return BrainMVP(job.arrays.sequences, job.shape(), job.params.block, job.params.image_encoder)


def phase(params: PretrainParams, step: int, steps: int) -> tuple[bool, float]:
    """Whether another sequence fills view B, and the weight of the contrast, at a step from 0."""
    cross = step >= round(params.template_share * steps)
    return cross, float(step >= steps - round(params.contrast_share * steps))


def collate_views(job: PretrainJob, share: Share, grid: Triple, epoch: int) -> Views:
    """Copy one share of a batch out of the memory-mapped files, and draw what is asked of each study.

    Args:
        job: the run.
        share: rows of this rank.
        grid: blocks along each axis.
        epoch: other epochs hide other blocks.
    """
    present, params = job.arrays.sequence_present[share.rows], job.params
    draws = [
        draw(there, grid, params.mask_rate, np.random.default_rng([params.seed, epoch, 1 + int(row)]))
        for there, row in zip(present, share.rows, strict=True)
    ]
    return Views(
        torch.from_numpy(np.stack([job.arrays.volume(int(row)) for row in share.rows])),
        torch.from_numpy(present),
        *as_tensors(draws),
        torch.from_numpy(share.weight),
    )


class _Run:
    """Network, optimiser and rows of one run on one rank."""

    def __init__(self, job: PretrainJob, world: World, on_tick: OnTick) -> None:
        self.job, self.world, self.on_tick = job, world, on_tick
        self.rows, self.validation = job.rows("train"), job.rows("validation")
        torch.manual_seed(job.params.seed)
        self.network = new_network(job)
        start_templates(self.network.encoder, job.arrays, self.rows)
        self.network.to(world.device)
        self.model: nn.Module = self.network
        if world.size > 1:
            self.model = nn.parallel.DistributedDataParallel(self.network, gradient_as_bucket_view=True)
        self.optimizer = make_optimizer(self.network, job.params)
        x, y, z = self.network.encoder.stem.padded
        self.grid = block_grid((x, y, z), job.params.block)
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
        means = np.mean(results, axis=0)
        record = PretrainRecord(
            epoch=number,
            **dict(zip(("loss", "template_loss", "cross_loss", "contrast_loss", "gradient_norm"), means,
                       strict=True)),
            **self.validated(),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            num_patients=len(self.rows),
            seconds=time.perf_counter() - started,
        )  # fmt: skip
        done = number + 1
        self.on_tick(Tick(number, done * self.steps_per_epoch, self.steps, record))
        return self.state((*before.history, record), finished=done == self.job.params.epochs)

    def batches(self, epoch: int) -> Iterator[tuple[Share, Views]]:
        """This rank's batches of one epoch; the next is made while one is used."""
        order = epoch_order(self.rows, self.job.params.seed, epoch)
        todo = shares(order, self.job.params.batch_size, self.world.rank, self.world.size)
        return ahead((share, collate_views(self.job, share, self.grid, epoch)) for share in todo)

    def step(self, epoch: int, at: int, share: Share, views: Views) -> tuple[float, ...]:
        """One optimisation step; the losses and the norm of the gradient."""
        params, now = self.job.params, epoch * self.steps_per_epoch + at
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(params, now, self.steps)
        losses = self.losses(self.model, views, *phase(params, now, self.steps))
        if not bool(torch.isfinite(losses.total)):
            raise StepError(_not_finite(epoch, at, share, losses))
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), params.clip_norm)
        self.optimizer.step()
        self.on_tick(Tick(epoch, now + 1, self.steps))
        terms = (losses.total, losses.template, losses.cross, losses.contrast, norm)
        return tuple(float(term.detach()) for term in terms)

    def losses(self, model: nn.Module, views: Views, cross: bool, contrast: float) -> ViewLosses:
        """Losses of the joined batch of all ranks."""
        with arithmetic(self.job.params, self.world):
            rebuilt = model(views.to(self.world.device), cross)
        return brainmvp_loss(rebuilt.joined(), self.job.params.tau, contrast)

    @torch.no_grad()
    def validated(self) -> dict[str, float]:
        """Validation losses over all ranks, each study counted once, masks the same in every epoch."""
        if not len(self.validation):
            return {}
        self.network.eval()
        sums, counted = np.zeros(3), 0.0
        for share in shares(self.validation, self.job.params.batch_size, self.world.rank, self.world.size):
            views = collate_views(self.job, share, self.grid, epoch=0)
            with arithmetic(self.job.params, self.world):
                rebuilt = self.network(views.to(self.world.device), True).joined()
            found = brainmvp_loss(rebuilt, self.job.params.tau, 1.0)
            number = float(rebuilt.weight.sum())
            sums += number * np.array([float(found.template), float(found.cross), float(found.contrast)])
            counted += number
        self.network.train()
        names = ("val_template_loss", "val_cross_loss", "val_contrast_loss")
        return dict(zip(names, (sums / counted).tolist(), strict=True))


def _not_finite(epoch: int, at: int, share: Share, losses: ViewLosses) -> str:
    rows = ", ".join(str(row) for row in share.rows[share.weight > 0])
    total, template, cross, contrast = (
        float(term.detach()) for term in (losses.total, losses.template, losses.cross, losses.contrast)
    )
    return (
        f"the loss is {total:g} in epoch {epoch}, step {at} (template {template:g}, cross {cross:g}, "
        f"contrast {contrast:g}); the batch is rows {rows} of studies.parquet: look at them, or lower "
        "params.yaml: pretrain.learning_rate; the checkpoints before it are kept"
    )
