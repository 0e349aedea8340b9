"""Training one fold in this process: the plain loop of `willis.training`, without a cluster."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from willis.imaging.shards import StudyArrays
from willis.inference import Predictor
from willis.models.decision import Calibration
from willis.models.network import TrimodalNetwork
from willis.models.pretrained import ENCODER, save_encoder
from willis.models.text import TextEncoder
from willis.params import PretrainParams, TrainParams
from willis.pretraining.loop import PretrainJob, pretrain_encoder, trained_network
from willis.training.dataset import fit_config, read_cases, read_table
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
    state = fit(Job.on(cases, config, params, work, pretrained=pretrained), World())
    network = TrimodalNetwork(config)
    network.load_state_dict(state.best)
    return Predictor(network, Calibration(), encoder)


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
