"""`pretrain`: the image encoder on the training split's volumes, without labels, on a Ray cluster.

With `method: none` there is nothing to learn: pretrain.json says so, and `train` starts from nothing.
"""

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from willis.models.pretrained import ENCODER, SUMMARY, file_sha256, save_encoder
from willis.params import PretrainParams
from willis.pretraining.loop import PretrainJob, PretrainRecord, trained_network
from willis.settings import Settings
from willis.steps.progress import progress_bar
from willis.training.checkpoints import TrainState
from willis.training.distributed import FAILURE, PROGRESS, train_on_cluster, write_whole

METRICS, PICTURE = "metrics.jsonl", "reconstructions.png"


class PretrainSummary(BaseModel):
    """What `pretrain` did; pretrain.json.

    Attributes:
        num_patients: studies of the training split that were learned from; 0 where the method is none.
        loss: reconstruction in the last epoch, weighted as in the method's loss.
        val_loss: the same on validation, which chose nothing; None without validation studies.
        encoder_sha256: of encoder.safetensors; None where the method is none.
        seconds: of all epochs.
        params: None where the method is none: no other parameter then has a meaning.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    num_patients: int = 0
    epochs: int = 0
    num_workers: int = 0
    num_parameters: int = 0
    loss: float | None = None
    val_loss: float | None = None
    seconds: float = 0.0
    encoder_sha256: str | None = None
    params: PretrainParams | None = None


def pretrain(ingest: Path, out: Path, params: PretrainParams, settings: Settings) -> PretrainSummary:
    """Pre-train the encoder of volumes; a run that was killed goes on from its newest whole checkpoint.

    Args:
        ingest: output of `ingest`; volumes and splits are read, outcomes are not.
        out: encoder.safetensors, metrics.jsonl, reconstructions.png, pretrain.json and checkpoints/ go here;
            pretrain.json alone where the method is none.
        params: section `pretrain` of params.yaml.
        settings: which Ray cluster.

    Returns:
        The summary, which pretrain.json holds as well.

    Raises:
        CohortError: too few studies in the training split.
        ParamsError: blocks that do not fit the encoder.
        RayError: no cluster, or one that is too small.
        StepError: the loss is not finite, or the disk is full.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / SUMMARY).unlink(missing_ok=True)
    if params.method == "none":
        for name in (ENCODER, METRICS, PICTURE):
            (out / name).unlink(missing_ok=True)
        return _told(PretrainSummary(method="none"), out)
    job = make_job(ingest.resolve(), out, params)
    job.checkpoints.clear_foreign()
    state = job.checkpoints.newest()
    if state is None or not state.finished:
        with progress_bar("pretrain", _said) as on_tick:
            train_on_cluster(job, out, settings.ray_address, on_tick)
        state = job.checkpoints.newest()
    assert state is not None, "a run that ended well has left a checkpoint"
    return _write(job, state, out)


def make_job(ingest: Path, out: Path, params: PretrainParams) -> PretrainJob:
    """Open the volumes and read who is in which split.

    Raises:
        ShapeError: a patient of the volumes stands in no split.
    """
    from willis.imaging.shards import StudyArrays
    from willis.pretraining.studies import read_splits

    arrays = StudyArrays.open(ingest)
    return PretrainJob.on(arrays, read_splits(ingest, arrays), params, out / "checkpoints")


def _write(job: PretrainJob, state: TrainState[PretrainRecord], out: Path) -> PretrainSummary:
    from willis.pretraining.picture import draw_pretraining

    network = trained_network(job, state)
    save_encoder(network.encoder, out / ENCODER, job.params.method)
    draw_pretraining(out / PICTURE, job, network)
    write_whole(out / METRICS, "".join(_line(record) for record in state.history))
    last = state.history[-1]
    summary = PretrainSummary(
        method=job.params.method,
        num_patients=last.num_patients,
        epochs=len(state.history),
        num_workers=job.params.num_workers,
        num_parameters=sum(weights.numel() for weights in network.encoder.parameters()),
        loss=last.reconstruction_loss,
        val_loss=last.val_loss,
        seconds=sum(record.seconds for record in state.history),
        encoder_sha256=file_sha256(out / ENCODER),
        params=job.params,
    )
    for name in (PROGRESS, FAILURE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "ray", ignore_errors=True)
    return _told(summary, out)


def _told(summary: PretrainSummary, out: Path) -> PretrainSummary:
    write_whole(out / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary


def _line(record: PretrainRecord) -> str:
    """One line of metrics.jsonl, with the terms that the method has."""
    return record.model_dump_json(exclude_none=True) + "\n"


def _said(record: PretrainRecord) -> str:
    validation = f", validation {record.val_loss:.3f}" if record.val_loss is not None else ""
    return f"reconstruction {record.reconstruction_loss:.3f}{validation}"
