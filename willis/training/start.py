"""What a network takes from the training split before its first step."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from willis.cohort.schema import MODALITIES
from willis.errors import ParamsError
from willis.imaging.shards import StudyArrays
from willis.models.decision import proper_subsets
from willis.models.encoded import presence_of
from willis.models.losses import ClassWeights
from willis.models.network import NetworkConfig, TrimodalNetwork
from willis.models.pretrained import load_encoder
from willis.models.vision import VolumeEncoder
from willis.params import TrainParams
from willis.training.dataset import Cases, Rows

TEMPLATE_STUDIES = 24
TOKEN_STUDIES = 200


def start(
    network: TrimodalNetwork,
    cases: Cases,
    rows: Rows,
    pretrained: Path | None = None,
    *,
    freeze: bool = False,
) -> None:
    """Start templates at the mean brain, or the encoder where `pretrain` left it; centre the reports.

    Args:
        network: just made, on the CPU.
        cases: all studies.
        rows: the training split's, the only ones looked at.
        pretrained: weights of `pretrain`, or None.
        freeze: leave the volumes' encoder at those weights.

    Raises:
        BundleError: those weights are of another architecture, or damaged.
        ParamsError: nothing taught the encoder that is to be frozen.
    """
    if network.image is not None:
        start_templates(network.image.volume, cases.arrays, rows)
        if pretrained is not None:
            load_encoder(network.image.volume, pretrained)
        if freeze:
            _freeze(network.image.volume, pretrained)
    if network.text is not None:
        with_report = rows[cases.modality_present[rows, MODALITIES.index("text")]]
        network.text.fit(torch.from_numpy(cases.text[with_report]))
        start_tokens(network, cases, with_report)


def _freeze(encoder: VolumeEncoder, pretrained: Path | None) -> None:
    if pretrained is None:
        raise ParamsError(
            "train.freeze_image_encoder is true and there are no pre-trained weights to keep; set "
            "params.yaml: pretrain.method to brainmvp, run `willis pretrain` and `willis train --pretrained "
            "FOLDER`, or set train.freeze_image_encoder to false"
        )
    encoder.freeze()


def class_weights(cases: Cases, params: TrainParams) -> ClassWeights | None:
    """Weights of the outcome loss, from the training split's labelled rows alone; None where they are off."""
    if params.class_weighting == "none":
        return None
    rows = cases.rows("train", labelled_only=True)
    return ClassWeights.balanced(torch.from_numpy(cases.outcome[rows]), torch.from_numpy(cases.grade[rows]))


def subsets_to_ask(config: NetworkConfig, params: TrainParams) -> Bool[Tensor, "S 3"] | None:
    """What the network is asked besides in each step: given each smaller set of its modalities."""
    smaller = proper_subsets(config.use_modalities)
    if not smaller or not params.lambda_subsets:
        return None
    return presence_of(smaller)


def start_tokens(network: TrimodalNetwork, cases: Cases, rows: Rows) -> None:
    """Centre the states of tokens by those of some of the reports in `rows`."""
    if network.text_tokens is None or cases.text_tokens is None:
        return
    some = rows[:: max(1, len(rows) // TOKEN_STUDIES)]
    real = cases.text_tokens.values[some][cases.text_tokens.real[some]]
    network.text_tokens.fit(torch.from_numpy(real.astype(np.float32)))


@torch.no_grad()
def start_templates(encoder: VolumeEncoder, arrays: StudyArrays, rows: Rows) -> None:
    """Start every sequence's template at the mean of the volumes in some of `rows` that have it."""
    total, count = torch.zeros_like(encoder.stem.template), torch.zeros(len(encoder.sequences))
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), TEMPLATE_STUDIES)).astype(int)]:
        present = torch.from_numpy(arrays.sequence_present[row])
        codes = torch.from_numpy(np.array(arrays.volume(int(row))))
        total += encoder.decoded(codes[None], present[None])[0]
        count += present
    encoder.stem.template.copy_(total / count.clamp(min=1)[:, None, None, None])
