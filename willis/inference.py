"""One trained model and some cases to predictions: the one road used by evaluation, batch and serving.

    Case -> Predictor.encode -> Encodings -> Predictor.explain -> Prediction

Encoding is the dear part and happens once per case; fusing is cheap, so all seven subsets of the modalities,
and every control of an evaluation, are asked of the same encodings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from willis.cohort.schema import MODALITIES
from willis.errors import BundleError, ShapeError
from willis.imaging.shards import decode
from willis.models.bundle import Bundle
from willis.models.case import Case, case_of_row, cases_from, read_training_table, stack
from willis.models.decision import Calibration, prediction_set, shapley, sigmoid, subsets_of, tempered
from willis.models.encoded import TEXT, Encoded, presence_of
from willis.models.network import Batch, NetworkConfig, TrimodalNetwork
from willis.models.text import MAX_STATES, Embedded, TextEncoder, embed

__all__ = [
    "Case", "Encodings", "Prediction", "Predictor", "case_of_row", "cases_from", "load_network",
    "read_training_table",
]  # fmt: skip

BATCH_SIZE = 16
NUM_SMOOTH = 6
NOISE_SHARE = 0.1
_Float64: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Encodings:
    """Cases after their encoders: one vector per modality and case (and tokens), and which are there."""

    case_ids: tuple[str, ...]
    encoded: Encoded
    present: Tensor
    table: Tensor
    """(N, Ft) as read, NaN where unknown: what `without_column` starts from."""

    def __len__(self) -> int:
        return len(self.case_ids)

    def take(self, rows: Sequence[int]) -> "Encodings":
        """Some of the cases, in the order of `rows`."""
        at = list(rows)
        encoded = self.encoded.map(lambda tensor: tensor[at])
        return Encodings(tuple(self.case_ids[k] for k in at), encoded, self.present[at], self.table[at])


@dataclass(frozen=True)
class Prediction:
    """What the model says about one case.

    Attributes:
        case_id: the case's.
        probability: P(poor outcome), calibrated.
        probability_raw: before calibration.
        prediction_set: classes that the conformal promise keeps: one, both, or (rarely) none.
        modalities_used: those that the case had and the network reads.
        attribution: exact Shapley value of each used modality; they add up to probability - prevalence.
        prevalence: of poor outcomes in training: the answer when nothing is known.
        embedding: float32 (R,), the fused vector before the last layer.
        by_subset: calibrated probability given each non-empty subset of the used modalities.
    """

    case_id: str
    probability: float
    probability_raw: float
    prediction_set: tuple[str, ...]
    modalities_used: tuple[str, ...]
    attribution: dict[str, float]
    prevalence: float
    embedding: npt.NDArray[np.float32]
    by_subset: dict[frozenset[str], float]


class Predictor:
    """A trained network with its calibration. Holds no state between calls; safe to call from threads."""

    def __init__(
        self,
        network: TrimodalNetwork,
        calibration: Calibration,
        text_encoder: TextEncoder,
        *,
        device: str = "cpu",
        version: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.config: NetworkConfig = network.config
        self.calibration = calibration
        self.version = version
        self.text_encoder = text_encoder

    @classmethod
    def from_model_dir(
        cls,
        model_dir: Path,
        calibration: Path | None,
        *,
        device: str = "cpu",
        text_cache: Path | None = None,
        version: str | None = None,
    ) -> Self:
        """Load what `train` wrote.

        Args:
            model_dir: holds contract.json and model.safetensors.
            calibration: calibration.json of `evaluate`; None leaves probabilities as the network gives them.
            device: torch device.
            text_cache: folder for text embeddings; None keeps none.
            version: what answers call this model.

        Raises:
            BundleError: a file is missing, damaged or of another architecture.
        """
        found = Calibration() if calibration is None else Calibration.load(calibration)
        network = load_network(model_dir)
        encoder = TextEncoder.load(network.config.text_encoder, text_cache)
        return cls(network, found, encoder, device=device, version=version)

    @classmethod
    def from_bundle(cls, folder: Path, *, device: str = "cpu", text_cache: Path | None = None) -> Self:
        """Load a bundle after every digest in it was checked.

        Raises:
            BundleError: the bundle is damaged or not one.
        """
        bundle = Bundle.load(folder)
        return cls.from_model_dir(
            bundle.folder,
            bundle.folder / "calibration.json",
            device=device,
            text_cache=text_cache,
            version=bundle.version,
        )

    def recalibrated(self, calibration: Calibration) -> "Predictor":
        """Return the same network under another calibration."""
        return Predictor(
            self.network, calibration, self.text_encoder, device=str(self.device), version=self.version
        )

    def predict(self, cases: Sequence[Case]) -> list[Prediction]:
        """Predict cases, in their order; they may mix all patterns of presence.

        Raises:
            ShapeError: a volume or planes do not fit the model.
        """
        return self.explain(self.encode(cases))

    def encode(self, cases: Sequence[Case], batch_size: int = BATCH_SIZE) -> Encodings:
        """Run each case through its encoders once.

        Args:
            cases: N cases.
            batch_size: how many go through the image encoder together.

        Raises:
            ShapeError: a volume or planes do not fit the model; names the case.
        """
        if not cases:
            nothing = torch.zeros(0, self.config.width, device=self.device)
            present = torch.zeros(0, len(MODALITIES), dtype=torch.bool, device=self.device)
            table = torch.zeros(0, len(self.config.table_columns), device=self.device)
            return Encodings((), Encoded(nothing, nothing, nothing), present, table)
        parts = []
        for start in range(0, len(cases), batch_size):
            chunk = cases[start : start + batch_size]
            batch = self.batch(chunk)
            with torch.inference_mode():
                encoded = self.network.encode(batch)
            names = tuple(case.case_id for case in chunk)
            parts.append(Encodings(names, encoded, batch.modality_present, batch.table))
        return _joined(parts)

    def batch(self, cases: Sequence[Case]) -> Batch:
        """Stack cases into the network's tensors.

        Raises:
            ShapeError: a volume or planes do not fit the model; names the case.
        """
        return stack(cases, self.config, self._texts([case.text for case in cases])).to(self.device)

    def explain(self, encodings: Encodings) -> list[Prediction]:
        """Ask the fusion about every subset of the modalities, all in one forward pass."""
        return [prediction for part in self._parts(encodings) for prediction in self._explained(part)]

    def _parts(self, encodings: Encodings) -> list[Encodings]:
        """All cases at once; a few at a time where each brings hundreds of tokens."""
        if not self.config.reads_tokens:
            return [encodings] if len(encodings) else []
        rows = range(len(encodings))
        return [encodings.take(rows[start : start + BATCH_SIZE]) for start in rows[::BATCH_SIZE]]

    def _explained(self, encodings: Encodings) -> list[Prediction]:
        subsets = subsets_of(MODALITIES)
        masks = presence_of(subsets)
        repeated = encodings.encoded.repeated(len(subsets))
        wanted = masks.to(self.device).repeat_interleave(len(encodings), dim=0)
        with torch.inference_mode():
            said = self.network.fuse(repeated, encodings.present.repeat(len(subsets), 1) & wanted)
        raw = sigmoid(_numpy(said.logit)).reshape(len(subsets), len(encodings))
        calibrated = self._calibrated(raw)
        # subsets_of ends with all three modalities: what each case has, cut by nothing
        embedding = said.embedding[-len(encodings) :].float().cpu().numpy()
        found = [dict(zip(subsets, column, strict=True)) for column in calibrated.T]
        return [
            self._prediction(encodings, n, raw[-1, n], found[n], embedding[n]) for n in range(len(encodings))
        ]

    def probabilities(self, encodings: Encodings, modalities: Sequence[str] = MODALITIES) -> _Float64:
        """Calibrated probability of each case from these modalities alone, prevalence where it has none.

        Returns:
            (N,)
        """
        if not len(encodings):
            return np.zeros(0)
        keep = torch.tensor([name in modalities for name in MODALITIES], device=self.device)
        with torch.inference_mode():
            parts = self._parts(encodings)
            logits = torch.cat([self.network.fuse(p.encoded, p.present & keep).logit for p in parts])
        nothing = ~(encodings.present & keep).any(dim=1).cpu().numpy()
        return np.where(nothing, self.config.prevalence, self._calibrated(sigmoid(_numpy(logits))))

    def with_texts(self, encodings: Encodings, texts: Sequence[str | None]) -> Encodings:
        """The same cases with other reports."""
        if self.network.text is None:
            return encodings
        has_text = torch.tensor([bool(text and text.strip()) for text in texts], device=self.device)
        present = encodings.present.clone()
        present[:, TEXT] = has_text
        with torch.inference_mode():
            read = self._texts(texts).tensors(self.device)
            encoded = self.network.with_text(encodings.encoded, *read)
        return replace(encodings, encoded=encoded, present=present)

    def with_text_of(self, encodings: Encodings, order: Sequence[int]) -> Encodings:
        """The same cases, case n holding the report of case order[n]."""
        present, moved = encodings.present.clone(), encodings.take(order)
        present[:, TEXT] = moved.present[:, TEXT]
        return replace(encodings, encoded=encodings.encoded.with_text_of(moved.encoded), present=present)

    def without_column(self, encodings: Encodings, column: str) -> Encodings:
        """The same cases with one clinical column unknown."""
        if self.network.table is None:
            return encodings
        table = encodings.table.clone()
        table[:, [k for k, c in enumerate(self.config.table_columns) if c.name == column]] = torch.nan
        with torch.inference_mode():
            vectors = self.network.table(table)
        return replace(encodings, encoded=replace(encodings.encoded, table=vectors), table=table)

    def saliency(self, case: Case) -> npt.NDArray[np.float32]:
        """Say where in the volume the answer hangs: gradient times input, averaged over noisy copies.

        Returns:
            float32 (X, Y, Z), not negative, 0 outside the brain; log-odds per voxel, all sequences summed.

        Raises:
            ShapeError: the case has no volume, or one that does not fit.

        Reference:
            Smilkov et al., SmoothGrad, arXiv 1706.03825.
        """
        if case.volume is None or not np.any(case.sequence_present):
            raise ShapeError(f"case {case.case_id!r} has no volume; saliency is drawn over one")
        if self.network.image is None:
            return np.zeros(self.config.shape, np.float32)
        batch = self.batch([case])
        values = decode(_required(batch.volume), self.config.sequences)
        brain = (values != 0) & batch.sequence_present[:, :, None, None, None]
        spread = NOISE_SHARE * float(values[brain].std()) if brain.any() else 0.0
        generator = torch.Generator(device=self.device).manual_seed(0)
        total = torch.zeros(self.config.shape, device=self.device)
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(NUM_SMOOTH):
                noise = torch.randn(values.shape, generator=generator, device=self.device) * spread
                total += self._gradient_times_input(batch, values, noise * brain)
        return _smooth(total / NUM_SMOOTH, brain.any(dim=1)[0]).cpu().numpy().astype(np.float32)

    def _gradient_times_input(self, batch: Batch, values: Tensor, noise: Tensor) -> Tensor:
        """|d logit / d voxel| |voxel|, summed over sequences: (X, Y, Z)."""
        noisy = (values + noise).requires_grad_(True)
        logit = self.network(replace(batch, volume=noisy)).logit.sum()
        gradient = torch.autograd.grad(logit, noisy)[0]
        return (gradient * values).abs().sum(dim=(0, 1))

    def _prediction(
        self,
        encodings: Encodings,
        n: int,
        raw: float,
        by_subset: dict[frozenset[str], float],
        embedding: npt.NDArray[np.float32],
    ) -> Prediction:
        there = encodings.present[n].tolist()
        used = tuple(name for name, present in zip(MODALITIES, there, strict=True) if present)
        known = {subset: float(by_subset[subset]) for subset in subsets_of(used)}
        prevalence = self.config.prevalence
        probability = known[frozenset(used)] if used else prevalence
        return Prediction(
            case_id=encodings.case_ids[n],
            probability=probability,
            probability_raw=float(raw) if used else prevalence,
            prediction_set=prediction_set(probability, self.calibration.conformal_quantile),
            modalities_used=used,
            attribution=shapley(used, known, prevalence),
            prevalence=prevalence,
            embedding=embedding,
            by_subset=known,
        )

    def _calibrated(self, probability: _Float64) -> _Float64:
        return tempered(probability, self.calibration.temperature)

    def _texts(self, texts: Sequence[str | None]) -> Embedded:
        """Embed one text at a time, and keep as much room for each one's tokens.

        Padding beside others would change the last digits of an answer.
        """
        width, tokens = self.config.text_width, self.config.reads_tokens
        if self.network.text is None:
            return Embedded(np.zeros((len(texts), width), np.float32), None)
        known = [text if text and text.strip() else None for text in texts]
        read = embed(self.text_encoder, known, width, tokens=tokens, batch_size=1)
        return read if read.tokens is None else replace(read, tokens=read.tokens.widened(MAX_STATES))


def load_network(model_dir: Path) -> TrimodalNetwork:
    """Build the network of contract.json and put the weights of model.safetensors into it.

    Raises:
        BundleError: a file is missing or damaged, or the weights are of another architecture.
    """
    from pydantic import ValidationError
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = NetworkConfig.model_validate_json((model_dir / "contract.json").read_bytes())
        weights = load_file(model_dir / "model.safetensors")
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename or model_dir} is missing; run `willis train`") from None
    except (ValidationError, SafetensorError) as error:
        raise BundleError(f"{model_dir} is damaged: {error}; train again or fetch the bundle again") from None
    network = TrimodalNetwork(config)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(
            f"{model_dir / 'model.safetensors'} does not fit contract.json: {str(error)[:300]}"
        ) from None
    return network


def _joined(parts: list[Encodings]) -> Encodings:
    return Encodings(
        case_ids=tuple(name for part in parts for name in part.case_ids),
        encoded=Encoded.joined([part.encoded for part in parts]),
        present=torch.cat([part.present for part in parts]),
        table=torch.cat([part.table for part in parts]),
    )


def _numpy(values: Tensor) -> _Float64:
    return values.double().cpu().numpy()


def _required(volume: Tensor | None) -> Tensor:
    assert volume is not None  # Predictor.batch always stacks one
    return volume


def _smooth(values: Tensor, brain: Tensor) -> Tensor:
    """Average over about one patch of the stem, so that its grid does not show; nothing outside the brain."""
    pooled = torch.nn.functional.avg_pool3d(values[None, None], (5, 5, 3), stride=1, padding=(2, 2, 1))
    return pooled[0, 0] * brain
