"""`train`: the trimodal network on the training split, data-parallel on a Ray cluster."""

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from willis.models.pretrained import file_sha256, pretrained_weights
from willis.models.weights import save_weights
from willis.params import TrainParams
from willis.revision import code_revision
from willis.settings import Settings
from willis.steps.progress import progress_bar
from willis.training.checkpoints import TrainState
from willis.training.dataset import encode, read_table
from willis.training.distributed import FAILURE, PROGRESS, train_on_cluster, write_whole
from willis.training.loop import Job
from willis.training.metrics import EpochRecord

WEIGHTS, CONTRACT, METRICS, SUMMARY = "model.safetensors", "contract.json", "metrics.jsonl", "train.json"
CODE = "code.json"


class TrainingCode(BaseModel):
    """Which code trained; code.json, written before the first step of a run.

    Attributes:
        git_revision: commit of the code; None outside of a git checkout.
        git_dirty: True where that commit alone does not say what ran: the checkout differed from it, or the
            run had begun under another one. None without a commit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    git_revision: str | None = None
    git_dirty: bool | None = None


class TrainSummary(BaseModel):
    """What `train` did; train.json.

    Attributes:
        best_val_auc: of the epoch whose weights are kept; None when validation holds one class.
        seconds_per_patient_step: wall time of one patient in one optimisation step, over all workers.
        data_wait_share: share of training time that rank 0 waited for batches.
        git_revision: commit of the code that trained; None outside of a git checkout.
        git_dirty: True where that commit alone does not say what ran (`TrainingCode`).
        pretrained_sha256: of the weights that the volumes' encoder started from; None without pre-training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: int
    epochs: int
    best_epoch: int
    best_val_auc: float | None
    best_val_loss: float
    num_parameters: int
    num_patients: int
    prevalence: float
    seconds_per_patient_step: float
    data_wait_share: float
    seed: int
    params: TrainParams
    git_revision: str | None = None
    git_dirty: bool | None = None
    pretrained_sha256: str | None = None


def train(
    ingest: Path,
    features: Path,
    out: Path,
    params: TrainParams,
    settings: Settings,
    pretrained: Path | None = None,
) -> TrainSummary:
    """Train the network; a run that was killed goes on from its newest whole checkpoint.

    Args:
        ingest: output of `ingest`, for the volumes.
        features: output of `featurize`, for everything else.
        out: model.safetensors, contract.json, metrics.jsonl, train.json, code.json and checkpoints/ go here.
        params: section `train` of params.yaml.
        settings: which Ray cluster.
        pretrained: output of `pretrain`, whose weights the volumes' encoder starts from, if its method was
            not none; without an image among `use_modalities` they are not looked at.

    Returns:
        The summary, which train.json holds as well.

    Raises:
        CohortError: too few outcomes to train or validate on.
        BundleError: the pre-trained weights are of another architecture.
        RayError: no cluster, or one that is too small.
        StepError: the loss is not finite, or the disk is full.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    job = make_job(ingest.resolve(), features.resolve(), out, params, pretrained and pretrained.resolve())
    job.checkpoints.clear_foreign()
    state = job.checkpoints.newest()
    if state is None or not state.finished:
        write_whole(out / CODE, _code(out, resumed=state is not None).model_dump_json() + "\n")
        with progress_bar("train", _said) as on_tick:
            train_on_cluster(job, out, settings.ray_address, on_tick)
        state = job.checkpoints.newest()
    assert state is not None, "a run that ended well has left a checkpoint"
    return _write(job, state, out)


def make_job(
    ingest: Path, features: Path, out: Path, params: TrainParams, pretrained: Path | None = None
) -> Job:
    """Read and encode everything that training needs, fitted on the training split alone."""
    from willis.imaging.shards import StudyArrays

    arrays = StudyArrays.open(ingest)
    cases, config = encode(read_table(features, arrays), arrays, params, out / "embeddings")
    weights = pretrained_weights(pretrained) if pretrained and "image" in params.use_modalities else None
    return Job.on(cases, config, params, out / "checkpoints", pretrained=weights)


def _code(out: Path, *, resumed: bool) -> TrainingCode:
    revision, dirty = code_revision()
    if revision is None:
        return TrainingCode()
    began = _recorded_code(out)
    other = resumed and (began.git_revision != revision or bool(began.git_dirty))
    return TrainingCode(git_revision=revision, git_dirty=dirty or other)


def _recorded_code(out: Path) -> TrainingCode:
    path = out / CODE
    return TrainingCode.model_validate_json(path.read_text()) if path.is_file() else TrainingCode()


def _write(job: Job, state: TrainState, out: Path) -> TrainSummary:
    save_weights(state.best, out / WEIGHTS, "willis train")
    write_whole(out / CONTRACT, job.config.model_dump_json(indent=2) + "\n")
    write_whole(out / METRICS, "".join(f"{record.model_dump_json()}\n" for record in state.history))
    summary = _summary(job, state, _recorded_code(out))
    write_whole(out / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    for name in (PROGRESS, FAILURE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "ray", ignore_errors=True)
    return summary


def _summary(job: Job, state: TrainState, code: TrainingCode) -> TrainSummary:
    from willis.models.network import TrimodalNetwork

    best = state.history[state.best_epoch]
    seconds = [record.seconds for record in state.history]
    patients = sum(record.num_patients for record in state.history)
    waited = sum(record.data_wait_share * record.seconds for record in state.history)
    return TrainSummary(
        seed=job.params.seed,
        params=job.params,
        num_workers=job.params.num_workers,
        epochs=len(state.history),
        best_epoch=state.best_epoch,
        best_val_auc=best.val_auc,
        best_val_loss=best.val_loss,
        num_parameters=TrimodalNetwork(job.config).num_parameters(),
        num_patients=best.num_patients,
        prevalence=job.config.prevalence,
        seconds_per_patient_step=sum(seconds) / patients,
        data_wait_share=waited / sum(seconds),
        git_revision=code.git_revision,
        git_dirty=code.git_dirty,
        pretrained_sha256=job.pretrained and file_sha256(job.pretrained),
    )


def _said(record: EpochRecord) -> str:
    area = f", AUC {record.val_auc:.3f}" if record.val_auc is not None else ""
    return f"validation loss {record.val_loss:.3f}{area}"
