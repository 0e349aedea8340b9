"""The trimodal network, top to bottom: image, report and table of one patient to P(poor outcome).

Axis letters: B cases, C sequences, X Y Z voxels (RAS+), P planes, F features, V image tokens, L report
tokens, S subsets of modalities, W shared width, R contrast width; 3 modalities as in `schema.MODALITIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from willis.cohort.schema import MODALITIES, POOR_FROM, Sequence
from willis.errors import ShapeError
from willis.models.encoded import IMAGE, TEXT, Encoded
from willis.models.fusion import FUSIONS, LATE, Fusion, FusionName, FusionShape, Pair
from willis.models.head import NUM_CUTS, Grades, Head, LateHead, LateWeights, Roads, RoadsName
from willis.models.imputer import AbsentName, Imputation, Imputer
from willis.models.isda import ClassSpread
from willis.models.losses import InSubsets, Scored
from willis.models.table import FeatureColumn, FeatureEncoder, TableEncoderName
from willis.models.text import TEXT_WIDTH
from willis.models.vision import ENCODERS, ImageEncoderName, PlanesEncoder, VolumeEncoder


class NetworkConfig(BaseModel):
    """Everything that makes the network's parameters mean something; contract.json holds it.

    Attributes:
        shape: voxels of the canonical grid.
        fact_columns: measured facts that join the image; empty when `image_facts` is off.
        image_encoder: of the volumes; `cnn` where a contract does not say.
        table_encoder: of the clinical table, not of the facts; `mlp` where a contract does not say.
        absent: what stands for an absent modality; `learned` where a contract does not say.
        roads: from each modality straight to the logit; `shared` where a contract does not say.
        isda: learn the spread of the embedding within each class; not in late fusion, which has no one head.
        late_weights: of the three predictions in late fusion; `learned` where a contract does not say.
        prevalence: share of poor outcomes in the training split, the answer when nothing is known.
        ordinal: learn from all grades of the scale, not only from poor against good.
        num_cuts: grades of the scale less one; the Rankin scale is cut in six places.
        poor_from: the grade from which an outcome is poor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: tuple[Sequence, ...]
    planes: tuple[str, ...] = ()
    shape: tuple[int, int, int]
    fact_columns: tuple[FeatureColumn, ...] = ()
    table_columns: tuple[FeatureColumn, ...] = ()
    text_encoder: str
    text_width: int = TEXT_WIDTH
    image_encoder: ImageEncoderName = "cnn"
    table_encoder: TableEncoderName = "mlp"
    use_modalities: tuple[str, ...] = MODALITIES
    fusion: FusionName = "vdafm_pooled"
    absent: AbsentName = "learned"
    roads: RoadsName = "shared"
    late_weights: LateWeights = "learned"
    isda: bool = False
    width: int = Field(128, ge=16)
    contrast_width: int = Field(64, ge=8)
    fusion_layers: int = Field(1, ge=1)
    fusion_heads: int = Field(8, ge=1)
    dropout: float = Field(0.2, ge=0, le=1)
    temperature: float = Field(0.07, gt=0)
    prevalence: float = Field(0.5, ge=0, le=1)
    ordinal: bool = True
    num_cuts: int = Field(NUM_CUTS, ge=2)
    poor_from: int = Field(POOR_FROM, ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.fusion_heads:
            raise ValueError(f"fusion_heads is {self.fusion_heads}; it must divide width ({self.width})")
        return self

    @property
    def reads_tokens(self) -> bool:
        """The fusion looks at tokens; they are kept for no other."""
        return self.fusion != LATE and FUSIONS[self.fusion].reads_tokens


@dataclass(frozen=True)
class Batch:
    """Cases as tensors. Fields of an absent modality hold anything; `modality_present` decides.

    Attributes:
        volume: codes (uint8, decoded on the device) or decoded values (`willis.imaging.shards.decode`).
        sequence_present: False where the sequence's template stands in.
        planes: grey values, or None when the network has no planes.
        facts: as `encode_rows(config.fact_columns, ...)` reads them; NaN where not known.
        table: as `encode_rows(config.table_columns, ...)` reads them; NaN where not known.
        text: sentence embedding of the report.
        outcome: 1 poor, 0 good, NaN not known.
        grade: Rankin score 0 to 6, NaN where not known.
        weight: 0 for a row that only fills the batch.
        text_tokens: states of the report's tokens, or None when the network reads no tokens.
        text_real: False where a report has no token.
    """

    volume: UInt8[Tensor, "B C X Y Z"] | Float[Tensor, "B C X Y Z"] | None
    sequence_present: Bool[Tensor, "B C"]
    planes: UInt8[Tensor, "B P H W"] | None
    planes_present: Bool[Tensor, " B"]
    facts: Float[Tensor, "B Ff"]
    table: Float[Tensor, "B Ft"]
    text: Float[Tensor, "B T"]
    modality_present: Bool[Tensor, "B 3"]
    outcome: Float[Tensor, " B"]
    grade: Float[Tensor, " B"]
    weight: Float[Tensor, " B"]
    text_tokens: Float[Tensor, "B L T"] | None = None
    text_real: Bool[Tensor, "B L"] | None = None

    def __len__(self) -> int:
        return len(self.modality_present)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply `change` to every tensor."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if value is not None})

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device (without waiting, when memory is pinned)."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """Copy to page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Output:
    """What the network says.

    Attributes:
        logit: of a poor outcome, P = sigmoid(logit) before calibration.
        embedding: the fused vector just before the last layer; in late fusion the average of the three.
        pair: what the alignment losses compare; None for a fusion without alignment.
        offsets: P(mRS > k) = sigmoid(logit - offsets[k]); None for a network that knows poor and good alone.
        imputation: how well present modalities were guessed from the others; None where nothing is guessed.
        spread: variance of the logit within good and within poor; None without ISDA.
        in_subsets: what is said of the same cases given less; None where nobody asked.
    """

    logit: Float[Tensor, " B"]
    embedding: Float[Tensor, "B R"]
    pair: Pair | None
    offsets: Float[Tensor, " K"] | None
    imputation: Imputation | None = None
    spread: Float[Tensor, " 2"] | None = None
    in_subsets: InSubsets | None = None

    def scored(self, batch: Batch, paired: Bool[Tensor, " B"]) -> Scored:
        """Join with the targets of `batch`; `paired` marks rows whose image and text were both used."""
        return Scored(
            self.logit, batch.outcome, batch.grade, batch.weight, paired, self.pair, self.offsets,
            self.imputation, self.spread, None if self.spread is None else self.embedding,
            self.in_subsets,
        )  # fmt: skip


class ImageEncoder(nn.Module):
    """Volumes, planes and measured facts to x_v and, where the fusion asks, to tokens.

    All of them vanish together with the image.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.volume = VolumeEncoder(
            config.sequences, config.shape, width, config.dropout, config.image_encoder
        )
        self.planes = PlanesEncoder(width, config.dropout) if config.planes else None
        self.facts = (
            FeatureEncoder(config.fact_columns, width, config.dropout) if config.fact_columns else None
        )
        parts = 1 + (self.planes is not None) + (self.facts is not None)
        self.join = nn.Linear(parts * width, width)
        top_width = ENCODERS[config.image_encoder].top
        self.to_tokens = nn.Linear(top_width, width) if config.reads_tokens else None

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B V W"] | None]:
        """Encode the image side of a batch.

        Returns:
            x_v, and the tokens: the volume's top grid, one for the planes, one for the facts; or None.

        Raises:
            ShapeError: the network reads volumes or planes and the batch has none.
        """
        if batch.volume is None or (self.planes is not None and batch.planes is None):
            raise ShapeError(
                "the batch has no volume or no planes; this network reads "
                f"{self.volume.sequences}{' and planes' if self.planes is not None else ''} "
                "(give zeros and mark the modality absent)"
            )
        top = self.volume.top(batch.volume, batch.sequence_present)
        parts = [self.volume.body.pooled(top)]
        if self.planes is not None:
            parts.append(self.planes(batch.planes, batch.planes_present))
        if self.facts is not None:
            parts.append(self.facts(batch.facts))
        joined: Tensor = self.join(torch.cat(parts, dim=-1))
        if self.to_tokens is None:
            return joined, None
        grid = self.to_tokens(top.flatten(2).transpose(1, 2))
        return joined, torch.cat([grid, *(part[:, None] for part in parts[1:])], dim=1)


class TextProjection(nn.Module):
    """W_t (x_t - mean) / sd: embeddings of reports, and states of tokens, point one way until centred.

    The mean (per number) and the spread (one for all) are those of the training split; they are stored
    with the weights.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, text_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(text_width))
        self.register_buffer("sd", torch.ones(()))
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(text_width, width))

    def forward(self, text: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows W"]:
        """Project sentence embeddings (B rows) or token states (B x L rows)."""
        projected: Tensor = self.project((text - self.mean) / self.sd)
        return projected

    @torch.no_grad()
    def fit(self, text: Float[Tensor, "N T"]) -> None:
        """Centre and scale by the reports of the training split; fewer than two leave things as they are."""
        if len(text) > 1:
            self.mean.copy_(text.mean(dim=0))
            self.sd.copy_((text - self.mean).square().mean().sqrt().clamp(min=1e-6))


class TrimodalNetwork(nn.Module):
    """Image, report and table to P(poor outcome); any of the three may be absent, row by row.

    Encoders of modalities outside `use_modalities` are not built: every parameter that exists gets a
    gradient on every step.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        used, width = config.use_modalities, config.width
        self.image = ImageEncoder(config) if "image" in used else None
        self.text = TextProjection(config.text_width, width, config.dropout) if "text" in used else None
        self.table = (
            FeatureEncoder(config.table_columns, width, config.dropout, config.table_encoder)
            if "table" in used
            else None
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in MODALITIES)
        self.absent = nn.Parameter(torch.randn(len(MODALITIES), width) * 0.02)
        late = config.fusion == LATE
        self.fusion = None if late else _fusion(config)
        self.head = None if late else _head(config)
        self.late = _late(config) if late else None
        self.roads = Roads(width, config.roads)
        self.grades = Grades(config.num_cuts, config.poor_from) if config.ordinal else None
        reads_words = config.reads_tokens and "text" in used
        self.text_tokens = TextProjection(config.text_width, width, config.dropout) if reads_words else None
        self.imputer = Imputer(width) if config.absent == "imputed" else None
        self.spread = ClassSpread(config.contrast_width) if config.isda else None

    def forward(self, batch: Batch, subsets: Bool[Tensor, "S 3"] | None = None) -> Output:
        """Predict a batch that may mix all seven patterns of presence.

        Args:
            batch: the cases.
            subsets: what to ask of the same cases besides: given no more than each of these modalities.

        Raises:
            ShapeError: the batch does not fit the configuration.
        """
        encoded = self.encode(batch)
        output = self.fuse(encoded, batch.modality_present)
        if subsets is None:
            return output
        return replace(output, in_subsets=self.in_subsets(encoded, batch.modality_present, subsets))

    def encode(self, batch: Batch) -> Encoded:
        """Encode each modality once; `fuse` may then be asked with any presence (exact Shapley values).

        Raises:
            ShapeError: the batch does not fit the configuration.
        """
        nothing = self.absent.new_zeros(len(batch), self.config.width)
        image, image_tokens = (nothing, None) if self.image is None else self.image(batch)
        encoded = Encoded(image=image, text=nothing, table=nothing, image_tokens=image_tokens)
        if self.text is not None:
            encoded = self.with_text(encoded, batch.text, batch.text_tokens, batch.text_real)
        return encoded if self.table is None else replace(encoded, table=self.table(batch.table))

    def with_text(
        self,
        encoded: Encoded,
        text: Float[Tensor, "B T"],
        tokens: Float[Tensor, "B L T"] | None,
        real: Bool[Tensor, "B L"] | None,
    ) -> Encoded:
        """The same cases with these reports, as a batch holds them.

        Raises:
            ShapeError: the fusion reads tokens and there are none.
        """
        assert self.text is not None, "asked of a network that reads reports"
        vector = self.text(text)
        if self.text_tokens is None:
            return replace(encoded, text=vector)
        if tokens is None or real is None:
            raise ShapeError(
                f"the batch has no report tokens; fusion {self.config.fusion!r} reads them "
                "(willis/models/text.py: embed with tokens=True)"
            )
        return replace(encoded, text=vector, text_tokens=self.text_tokens(tokens), text_real=real)

    def fuse(self, encoded: Encoded, modality_present: Bool[Tensor, "B 3"]) -> Output:
        """Put learned vectors or guesses where a modality is absent, and ask early or late fusion.

        Args:
            encoded: of `encode`; rows of absent modalities are never looked at.
            modality_present: columns image, text, table.
        """
        present = modality_present & self.used_modalities()
        vectors = (encoded.image, encoded.text, encoded.table)
        own = self.roads(torch.stack(vectors, dim=1), present)
        normed = [norm(vector) for norm, vector in zip(self.norms, vectors, strict=True)]
        standing, imputation = self.standing(normed, present)
        image, text, table = (
            torch.where(present[:, m, None], normed[m], standing[m]) for m in range(len(MODALITIES))
        )
        offsets = None if self.grades is None else self.grades()
        if self.late is not None:
            logit, embedding = self.late(torch.stack([image, text, table], dim=1), own, present)
            return Output(logit, embedding, None, offsets, imputation)
        assert self.fusion is not None and self.head is not None, "built where late fusion is not"
        fused = self.fusion(image, text, encoded.tokens(present) if self.config.reads_tokens else None)
        logit, embedding = self.head(torch.cat([table, fused.vector, present.to(table.dtype)], dim=-1))
        spread = None if self.spread is None else self.spread.along(self.head.logit.weight[0])
        return Output(logit + own.sum(dim=-1), embedding, fused.pair, offsets, imputation, spread)

    def in_subsets(
        self, encoded: Encoded, modality_present: Bool[Tensor, "B 3"], subsets: Bool[Tensor, "S 3"]
    ) -> InSubsets:
        """What `fuse` says when each case keeps no more than each subset of the modalities, in one pass."""
        present = modality_present & subsets[:, None]
        logit = self.fuse(encoded.repeated(len(subsets)), present.flatten(0, 1)).logit
        told = (present & self.used_modalities()).any(dim=-1)
        return InSubsets(logit.view_as(told).T, told.T)

    def standing(
        self, normed: list[Float[Tensor, "B W"]], present: Bool[Tensor, "B 3"]
    ) -> tuple[list[Tensor], Imputation | None]:
        """What stands for each modality where it is absent: a learned vector, or a guess from the others."""
        if self.imputer is None:
            return [self.absent[m] for m in range(len(MODALITIES))], None
        guessed, imputation = self.imputer(torch.stack(normed, dim=1), present, self.absent)
        return list(guessed.unbind(dim=1)), imputation

    def used_modalities(self) -> Bool[Tensor, " 3"]:
        """Which of image, text, table this network was built for."""
        return torch.tensor(
            [name in self.config.use_modalities for name in MODALITIES], device=self.absent.device
        )

    def scored(self, batch: Batch, output: Output) -> Scored:
        """What the loss needs; rows with image and text both used are the ones that get aligned."""
        present = batch.modality_present & self.used_modalities()
        return output.scored(batch, present[:, IMAGE] & present[:, TEXT])

    def num_parameters(self) -> int:
        """Numbers of the network; the text encoder is no part of it."""
        return sum(parameter.numel() for parameter in self.parameters())


def _fusion(config: NetworkConfig) -> Fusion:
    shape = FusionShape(config.width, config.contrast_width, config.fusion_layers, config.fusion_heads)
    return FUSIONS[config.fusion](shape, config.dropout, config.temperature)


def _head(config: NetworkConfig) -> Head:
    width_in = config.width + config.contrast_width + len(MODALITIES)
    return Head(width_in, config.contrast_width, config.dropout, config.prevalence)


def _late(config: NetworkConfig) -> LateHead:
    return LateHead(
        config.width, config.contrast_width, config.dropout, config.prevalence, config.late_weights
    )
