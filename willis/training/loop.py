"""The training loop in plain torch: the same code in a bare process and on every rank of a cluster.

With several ranks a process group must exist before `fit` is called; who made it does not matter.
"""

import ctypes
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Self

import numpy as np
import torch
from torch import Tensor, nn

from willis.errors import CohortError, StepError
from willis.models.losses import Losses, join_ranks, total_loss
from willis.models.network import Batch, NetworkConfig, Output, TrimodalNetwork
from willis.models.pretrained import file_sha256
from willis.params import LoopParams, TrainParams
from willis.training.checkpoints import Checkpoints, R, TrainState
from willis.training.dataset import (
    Cases,
    Share,
    ahead,
    collate,
    epoch_order,
    num_steps,
    shares,
    with_dropout,
)
from willis.training.mean_teacher import Answers, MeanTeacher, ramp, with_consistency
from willis.training.metrics import EpochRecord
from willis.training.optimizer import learning_rate, make_optimizer
from willis.training.start import class_weights, start, subsets_to_ask
from willis.training.validation import is_better, validation_metrics


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Tick(Generic[R]):
    """Progress: `step` of `steps` in all epochs are done; `record` stands at the end of an epoch."""

    epoch: int
    step: int
    steps: int
    record: R | None = None


OnTick = Callable[[Tick], None]


@dataclass(frozen=True)
class Job:
    """One training run: data, network, parameters, where checkpoints go."""

    step: ClassVar[str] = "train"
    record: ClassVar[type[EpochRecord]] = EpochRecord

    cases: Cases
    config: NetworkConfig
    params: TrainParams
    checkpoints: Checkpoints
    pretrained: Path | None = None

    @classmethod
    def on(
        cls,
        cases: Cases,
        config: NetworkConfig,
        params: TrainParams,
        folder: Path,
        *,
        keep: int = 2,
        pretrained: Path | None = None,
    ) -> Self:
        """A run that goes on from the checkpoints in `folder`, if they are of this very data and network.

        Args:
            cases: what to train on.
            config: of the network.
            params: section `train`.
            folder: of the checkpoints.
            keep: how many of them stay.
            pretrained: weights that the volumes' encoder starts from.
        """
        named = [params.model_dump_json(), config.model_dump_json(), cases.digest()]
        if pretrained is not None:
            named.append(file_sha256(pretrained))
        fingerprint = hashlib.sha256("\n".join(named).encode()).hexdigest()
        return cls(cases, config, params, Checkpoints(folder, fingerprint, keep), pretrained)

    def run(self, world: World, on_tick: OnTick) -> TrainState:
        """`fit`, as a cluster calls it."""
        return fit(self, world, on_tick)


@dataclass(frozen=True)
class StepResult:
    """What one optimisation step leaves behind; numbers are of the whole batch over all ranks."""

    losses: dict[str, float]
    gradient_norm: float
    num_patients: float
    waited_s: float


def fit(job: Job, world: World, on_tick: OnTick = lambda tick: None) -> TrainState:
    """Train to the last epoch or until validation stops improving, from a checkpoint if one is there.

    Args:
        job: the same on every rank.
        world: this rank.
        on_tick: called after every step and epoch.

    Returns:
        The last state; `best` holds the parameters to use.

    Raises:
        BundleError: the newest checkpoint is of another architecture, or lacks the teacher.
        CohortError: nobody in training or validation has an outcome.
        StepError: the loss is no longer finite; names the batch.
    """
    _check_splits(job.cases)
    reuse_freed_memory()
    run = _Run(job, world, on_tick)
    state = run.resume()
    while not state.finished:
        state = run.epoch(state)
        if world.rank == 0 and (state.finished or state.next_epoch % job.params.checkpoint_every == 0):
            job.checkpoints.save(state)
    return state


class _Run:
    """Network, optimiser and rows of one run on one rank."""

    def __init__(self, job: Job, world: World, on_tick: OnTick) -> None:
        self.job, self.world, self.on_tick = job, world, on_tick
        taught = job.params.semi_supervision == "src_mt"
        labelled_only = not (taught or job.params.use_unlabelled)
        self.rows = job.cases.rows("train", labelled_only=labelled_only)
        self.validation = job.cases.rows("validation", labelled_only=True)
        weights = class_weights(job.cases, job.params)
        self.classes = weights and weights.to(world.device)
        asked = subsets_to_ask(job.config, job.params)
        self.subsets = None if asked is None else asked.to(world.device)
        torch.manual_seed(job.params.seed)
        self.network = TrimodalNetwork(job.config)
        start(self.network, job.cases, self.rows, job.pretrained, freeze=job.params.freeze_image_encoder)
        self.network.to(world.device)
        self.teacher = MeanTeacher(self.network, job.cases, job.params) if taught else None
        self.kept = self.network if self.teacher is None else self.teacher.network
        self.model: nn.Module = self.network
        if world.size > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.network, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        self.optimizer = make_optimizer(self.network, job.params)
        self.steps_per_epoch = num_steps(len(self.rows), job.params.batch_size)
        self.steps = self.steps_per_epoch * job.params.epochs

    def resume(self) -> TrainState:
        """The newest whole checkpoint, or the start."""
        state = self.job.checkpoints.newest()
        if state is None:
            weights = copied(self.network)
            return TrainState(weights, {}, weights, best_epoch=-1, history=(), finished=False)
        self.job.checkpoints.restore(state, self.network, None if self.teacher is None else self.kept)
        if state.optimizer:
            self.optimizer.load_state_dict(state.optimizer)
        return state

    def epoch(self, before: TrainState) -> TrainState:
        """Train one epoch, validate, and say whether it was the best and the last."""
        number, params = before.next_epoch, self.job.params
        torch.manual_seed(seed_of(params.seed, number, self.world.rank))
        started = time.perf_counter()
        results = [self.step(number, at, share, batch, waited)
                   for at, (share, batch, waited) in enumerate(self.batches(number))]  # fmt: skip
        seconds = time.perf_counter() - started
        record = self.record(number, results, seconds)
        history = (*before.history, record)
        improved = before.best_epoch < 0 or is_better(record, history[before.best_epoch], params.stop_on)
        best_epoch = number if improved else before.best_epoch
        kept = copied(self.kept)
        finished = number + 1 == params.epochs or number - best_epoch >= params.patience
        self.on_tick(Tick(number, (number + 1) * self.steps_per_epoch, self.steps, record))
        return TrainState(
            network=kept if self.teacher is None else copied(self.network),
            optimizer=self.optimizer.state_dict(),
            best=kept if improved else before.best,
            best_epoch=best_epoch,
            history=history,
            finished=finished,
            teacher=None if self.teacher is None else kept,
        )

    def batches(self, epoch: int) -> Iterator[tuple[Share, Batch, float]]:
        """This rank's batches of one epoch, and how long each was waited for."""
        order = epoch_order(self.rows, self.job.params.seed, epoch)
        todo = shares(order, self.job.params.batch_size, self.world.rank, self.world.size)
        coming = ahead((share, self._made(share, epoch)) for share in todo)
        while True:
            asked = time.perf_counter()
            item = next(coming, None)
            if item is None:
                return
            yield *item, time.perf_counter() - asked

    def _made(self, share: Share, epoch: int) -> Batch:
        batch = with_dropout(collate(self.job.cases, share, self.job.config), share, self.job.params, epoch)
        return batch.pin() if self.job.params.use_gpu else batch

    def step(self, epoch: int, at: int, share: Share, batch: Batch, waited: float) -> StepResult:
        """One optimisation step."""
        params, now = self.job.params, epoch * self.steps_per_epoch + at
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(params, now, self.steps)
        losses = self.losses(share, batch.to(self.world.device), epoch, now)
        if not bool(torch.isfinite(losses.total)):
            raise StepError(_not_finite(epoch, at, share, losses))
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), params.clip_norm)
        self.optimizer.step()
        if self.teacher is not None:
            self.teacher.follow(self.network, now)
        self.on_tick(Tick(epoch, now + 1, self.steps))
        return StepResult(
            losses=losses.numbers(),
            gradient_norm=float(norm),
            num_patients=float(share.weight.sum()),
            waited_s=waited,
        )

    def losses(self, share: Share, batch: Batch, epoch: int, step: int) -> Losses:
        """Loss of the joined batch of all ranks; `step` counts over all epochs."""
        params = self.job.params
        with arithmetic(params, self.world):
            taught = None if self.teacher is None else self.teacher.answer(share, batch, epoch)
            output: Output = self.model(batch, self.subsets)
            scored = join_ranks(self.network.scored(batch, output))
        if self.network.spread is not None and scored.embedding is not None:
            self.network.spread.take_in(scored.embedding, scored.outcome, scored.weight)
        losses = total_loss(
            scored,
            params.lambda_contrast * params.lambda_contrast_decay**epoch,
            params.lambda_align,
            self.classes,
            params.lambda_imputation,
            params.isda * step / self.steps,
            params.lambda_subsets,
        )
        if taught is None:
            return losses
        answers = Answers.of(output, taught, batch.weight).joined()
        return with_consistency(losses, answers, ramp(params, step, self.steps))

    def record(self, epoch: int, results: list[StepResult], seconds: float) -> EpochRecord:
        """Sum up one epoch and validate."""
        means = np.mean([list(result.losses.values()) for result in results], axis=0)
        terms = dict(zip(results[0].losses, means, strict=True))
        checked = self.validated()
        return EpochRecord(
            epoch=epoch,
            loss=terms["total"],
            outcome_loss=terms["outcome"],
            contrast_loss=terms["contrast"],
            align_loss=terms["align"],
            consistency_loss=terms.get("consistency"),
            relation_loss=terms.get("relation"),
            imputation_loss=terms.get("imputation"),
            subsets_loss=terms.get("subsets"),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gradient_norm=float(np.mean([result.gradient_norm for result in results])),
            num_patients=len(self.rows),
            seconds=seconds,
            data_wait_share=sum(result.waited_s for result in results) / seconds,
            **checked,
        )

    @torch.no_grad()
    def validated(self) -> dict[str, float | None]:
        """Validation metrics over all ranks; every patient counts once, as it is (nothing dropped)."""
        network = self.kept.eval()
        parts: list[list[Tensor]] = []
        size = self.job.params.batch_size
        for share in shares(self.validation, size, self.world.rank, self.world.size):
            batch = collate(self.job.cases, share, self.job.config).to(self.world.device)
            with arithmetic(self.job.params, self.world):
                scored = join_ranks(network.scored(batch, network(batch)))
            pair = scored.pair
            tokens = [] if pair is None else [scored.paired, pair.image_token, pair.text_token, pair.scale]
            parts.append([scored.logit, scored.outcome, scored.grade, scored.weight, *tokens])
        network.train()
        offsets = None if network.grades is None else network.grades().float().cpu()
        return validation_metrics(parts, offsets)


def reuse_freed_memory() -> None:
    """Let malloc keep what torch frees: fresh pages for every activation cost a fifth of a CPU step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mmap_threshold, trim_threshold = -3, -1
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        return  # another C library: only slower


def arithmetic(params: LoopParams, world: World) -> torch.autocast | nullcontext[None]:
    """bfloat16 where asked for; the losses are always float32."""
    if params.precision == "float32":
        return nullcontext()
    return torch.autocast(world.device.type, dtype=torch.bfloat16)


def seed_of(*parts: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def copied(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers on the CPU, out of reach of the next step."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def _check_splits(cases: Cases) -> None:
    for split in ("train", "validation"):
        if not len(cases.rows(split, labelled_only=True)):
            raise CohortError(
                f"nobody in the {split} split has an outcome and a modality that is used "
                f"({int((cases.split == split).sum())} patients in it); make the cohort larger or change "
                "the shares (params.yaml: ingest.splits)"
            )


def _not_finite(epoch: int, at: int, share: Share, losses: Losses) -> str:
    rows = ", ".join(str(row) for row in share.rows[share.weight > 0])
    terms = losses.numbers()
    total = terms.pop("total")
    said = ", ".join(f"{name} {value:g}" for name, value in terms.items())
    return (
        f"the loss is {total:g} in epoch {epoch}, step {at} ({said}); the batch is rows {rows} of "
        "training_table.parquet: look for infinite values there, or lower params.yaml: train.learning_rate"
    )
