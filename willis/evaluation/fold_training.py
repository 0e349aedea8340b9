"""Training one fold in this process: the plain loop of `willis.training`, without a cluster."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from willis.imaging.shards import StudyArrays
from willis.inference import Predictor
from willis.models.decision import Calibration
from willis.models.network import TrimodalNetwork
from willis.models.pretrained import ENCODER, save_encoder
from willis.models.text import TextEncoder
from willis.params import PretrainParams, TrainParams
from willis.pretraining.loop import PretrainJob, pretrain_encoder, trained_network
from willis.training.dataset import Share, collate, fit_config, read_cases, read_table
from willis.training.loop import Job, World, fit

if TYPE_CHECKING:
    import pandas as pd


class Target(Protocol):
    """An ordinal scale in the place of the Rankin scale."""

    @property
    def num_cuts(self) -> int:
        """How often it is cut."""
        ...

    @property
    def poor_from(self) -> int:
        """The grade from which an outcome is poor."""
        ...

    def table(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Put its grades into `mrs`, the upper ones into `poor_outcome`; drop what may not be known."""
        ...


def train_fold(
    ingest: Path,
    features: Path,
    split: Mapping[str, str],
    work: Path,
    embeddings: Path,
    params: TrainParams,
    pretrained: Path | None = None,
    target: Target | None = None,
) -> Predictor:
    """Train on the patients that `split` calls train, stop early on those that it calls validation.

    Args:
        ingest: output of `ingest`.
        features: output of `featurize`; its own split is replaced.
        split: patient id -> train, validation or test; patients without an entry are not used at all.
        work: checkpoints go here; a killed run goes on from them.
        embeddings: cache of text embeddings, shared by all folds (the text encoder is frozen).
        params: section `train`.
        pretrained: weights that the volumes' encoder starts from.
        target: what is learned in the place of the outcome.
    """
    arrays = StudyArrays.open(ingest)
    frame = read_table(features, arrays)
    frame = frame.assign(split=frame["patient_id"].astype(str).map(dict(split)).fillna("unused"))
    frame = target.table(frame) if target else frame
    encoder = TextEncoder.load(params.text_encoder, embeddings, download=True)
    config = fit_config(frame, arrays, params, encoder)
    if target:
        config = config.model_copy(update={"num_cuts": target.num_cuts, "poor_from": target.poor_from})
    reads = "text" in params.use_modalities
    cases = read_cases(frame, arrays, config, encoder if reads else None)
    network = _trained(Job.on(cases, config, params, work, pretrained=pretrained))
    return Predictor(network, Calibration(), encoder)


def predict_from_table(
    frame: "pd.DataFrame",
    columns: Sequence[str],
    split: Mapping[str, str],
    work: Path,
    params: TrainParams,
) -> "pd.DataFrame":
    """Train on patients of whom nothing but a table is known, and predict those that `split` calls test.

    Args:
        frame: one row per patient: `patient_id`, `poor_outcome` (NaN not known) and the columns.
        columns: what the network may see; their names need not be those of the clinical schema.
        split: patient id -> train, validation or test; patients without an entry are not used at all.
        work: checkpoints go here; a killed run goes on from them.
        params: section `train`; of `use_modalities` the table alone is left.

    Returns:
        `patient_id` and `p`, the probability of a poor outcome before calibration.
    """
    params = params.model_copy(update={"use_modalities": ("table",), "outcome": "binary"})
    patients = frame["patient_id"].astype(str)
    frame = frame.assign(split=patients.map(dict(split)).fillna("unused"), mrs=np.nan)
    frame = frame.assign(has_text=False, has_table=frame[list(columns)].notna().any(axis=1))
    arrays = StudyArrays.without_images(patients)
    config = fit_config(frame, arrays, params, clinical=columns)
    cases = read_cases(frame, arrays, config, encoder=None)
    network = _trained(Job.on(cases, config, params, work)).eval()
    rows = np.flatnonzero(cases.split == "test")
    batch = collate(cases, Share(rows, np.ones(len(rows), np.float32)), config)
    with torch.inference_mode():
        p = network(batch).logit.sigmoid().double().numpy()
    return patients.iloc[rows].to_frame().assign(p=p)


def _trained(job: Job) -> TrimodalNetwork:
    network = TrimodalNetwork(job.config)
    network.load_state_dict(fit(job, World()).best)
    return network


def pretrain_fold(ingest: Path, tested: Collection[str], work: Path, params: PretrainParams) -> Path | None:
    """Pre-train on every study of a patient who is not tested in this fold, with an outcome or without.

    Args:
        ingest: output of `ingest`.
        tested: patients of the test fold.
        work: checkpoints and weights go here; a killed run goes on from them.
        params: section `pretrain`.

    Returns:
        The weights; None where the method is none.
    """
    if params.method == "none":
        return None
    arrays = StudyArrays.open(ingest)
    split = np.array(["test" if patient in tested else "train" for patient in arrays.patient_ids])
    job = PretrainJob.on(arrays, split, params, work)
    network = trained_network(job, pretrain_encoder(job, World()))
    save_encoder(network.encoder, work / ENCODER, params.method)
    return work / ENCODER
