"""MICS: one sequence of a study as an augmented sample of another (docs/method.md).

Two sequences of a study are each masked and shown alone, as BrainMVP shows them. Each is rebuilt where it is
hidden, its features are to be those that a slower copy of the encoder finds in the other one, and nothing in
them is to tell which sequence it was.

Axis letters: B studies, two views of each, C sequences, R width of the contrast, K bank, X Y Z voxels.

Reference:
    arXiv 2509.17492: eq. 37 to 43 of docs/method.md; contrast with a slow encoder, a bank and soft targets as
    in ALBEF (Li et al., NeurIPS 2021), reversed gradients as in Ganin and Lempitsky (ICML 2015).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim.swa_utils import get_ema_multi_avg_fn

from willis.cohort.schema import Sequence
from willis.imaging.shards import StudyArrays
from willis.models.vision import ENCODERS, ImageEncoderName
from willis.params import PretrainParams
from willis.pretraining.decoder import error_where_hidden
from willis.pretraining.masking import Triple, as_tensors, draw
from willis.pretraining.method import Method, MethodLosses, PerStudy, Studies, row_mean, standardised
from willis.pretraining.tokens import alone, covered
from willis.training.dataset import Rows

CONTRAST_WIDTH = 128
BANK = 1024


@dataclass(frozen=True)
class Pairs(PerStudy):
    """A batch of studies and two sequences of each.

    Attributes:
        volume: codes; what stands where a sequence is absent is ignored.
        present: which sequences a study has.
        channel: two of them; the same one twice where the study has no other.
        blocks: hidden blocks of the padded volume, for both.
        row: of the study in the shards.
        weight: 0 for a row that only fills the batch.
    """

    volume: UInt8[Tensor, "B C X Y Z"]
    present: Bool[Tensor, "B C"]
    channel: Int[Tensor, "B 2"]
    blocks: Bool[Tensor, "B X2 Y2 Z2"]
    row: Int[Tensor, " B"]
    weight: Float[Tensor, " B"]


@dataclass(frozen=True)
class Matched(PerStudy):
    """What became of both sequences.

    Attributes:
        error: mean square over the hidden voxels.
        query: of the masked sequence.
        key: of the whole sequence, by the slow encoder; no gradient.
        told: which sequence it was, as logits.
        channel: which sequence it was.
        row: of the study.
        weight: 0 for rows that do not count.
    """

    error: Float[Tensor, "B 2"]
    query: Float[Tensor, "B 2 R"]
    key: Float[Tensor, "B 2 R"]
    told: Float[Tensor, "B 2 C"]
    channel: Int[Tensor, "B 2"]
    row: Int[Tensor, " B"]
    weight: Float[Tensor, " B"]

    def units(self, name: str) -> Float[Tensor, "B 2 R"]:
        """Queries or keys about their mean over the batch, in units of their spread, at length 1."""
        both = standardised(getattr(self, name).unbind(dim=1), self.weight > 0)
        return normalize(torch.stack(both, dim=1), dim=-1)


@dataclass(frozen=True)
class Bank:
    """Keys of earlier steps.

    Attributes:
        keys: of length 1.
        rows: whose they are; -1 where the bank is not yet full.
    """

    keys: Float[Tensor, "K R"]
    rows: Int[Tensor, " K"]


@dataclass(frozen=True)
class MicsLosses(MethodLosses):
    """The terms, unweighted, and their weighted sum."""

    masked: Float[Tensor, ""]
    consistency: Float[Tensor, ""]
    align: Float[Tensor, ""]


class _Reversed(torch.autograd.Function):
    """The same forward; backward the other way, so that the encoder hides what the discriminator seeks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


class Mics(Method[Pairs, Matched]):
    """The encoder, its slow copy with a bank of keys, and a discriminator of sequences."""

    headings: ClassVar = ("a study", "what is seen", "rebuilt")
    reconstruction: ClassVar = {"masked": 1.0}
    bank_keys: Tensor
    bank_rows: Tensor
    bank_at: Tensor

    def __init__(
        self,
        sequences: tuple[Sequence, ...],
        shape: Triple,
        block: int,
        name: ImageEncoderName = "cnn",
        bank: int = BANK,
    ) -> None:
        super().__init__(sequences, shape, block, name)
        width = 2 * ENCODERS[name].top
        self.project = nn.Linear(width, CONTRAST_WIDTH)
        self.discriminator = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, len(sequences))
        )
        self.slow_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.slow_project = deepcopy(self.project).requires_grad_(False)
        self.register_buffer("bank_keys", torch.zeros(bank, CONTRAST_WIDTH))
        self.register_buffer("bank_rows", torch.full((bank,), -1))
        self.register_buffer("bank_at", torch.zeros((), dtype=torch.int64))

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], shape: Triple, params: PretrainParams) -> Self:
        """The network of a run, with the run's bank."""
        return cls(sequences, shape, params.block, params.image_encoder, params.bank)

    def start(self, arrays: StudyArrays, rows: Rows) -> None:
        """Templates start at the mean brain, and the slow encoder where the encoder does."""
        super().start(arrays, rows)
        self.slow_encoder.load_state_dict(self.encoder.state_dict())

    @classmethod
    def asked(cls, studies: Studies, grid: Triple, rate: float) -> Pairs:
        """Draw two sequences and the blocks of each study."""
        draws = [
            draw(there, grid, rate, rng) for there, rng in zip(studies.present, studies.rngs, strict=True)
        ]
        one, other, blocks = as_tensors(draws)
        return Pairs(
            torch.from_numpy(studies.volume),
            torch.from_numpy(studies.present),
            torch.stack([one, other], dim=1),
            blocks,
            torch.from_numpy(studies.rows),
            torch.from_numpy(studies.weight),
        )

    def forward(self, views: Pairs, cross: bool) -> Matched:
        """Mask, encode and rebuild both sequences; the slow encoder sees them whole.

        Args:
            views: studies of one batch.
            cross: another sequence is the second; False pairs the first with itself.
        """
        channel = views.channel if cross else views.channel[:, :1].expand(-1, 2)
        values = self.encoder.decoded(views.volume, views.present)
        rows = torch.arange(len(values), device=values.device).repeat_interleave(2)
        of_view = channel.flatten()
        whole = values[rows, of_view]
        voxels, tokens = (mask.repeat_interleave(2, dim=0) for mask in self.hidden(views.blocks))
        top = self.encoder.body.top(self._shown(whole.masked_fill(voxels, 0.0), of_view, tokens))
        features = self.encoder.body.pooled(top)
        error = error_where_hidden(self.decoder(top, of_view), whole, voxels, self.shape)
        answers = (error, self.project(features), self._keys(whole, of_view),
                   self.discriminator(_Reversed.apply(features)))  # type: ignore[no-untyped-call]  # fmt: skip
        error, query, key, told = (answer.unflatten(0, (-1, 2)) for answer in answers)
        return Matched(error, query, key, told, channel, views.row, views.weight)

    def _shown(
        self,
        kept: Float[Tensor, "B2 X Y Z"],
        channel: Int[Tensor, " B2"],
        hidden: Bool[Tensor, "B2 X2 Y2 Z2"],
    ) -> Tensor:
        """One sequence alone as tokens of the stem, its template where it is hidden."""
        num = len(self.encoder.sequences)
        own = nn.functional.one_hot(channel, num).bool()
        return covered(
            self.encoder.stem, alone(kept, channel, num), hidden[:, None] & own[..., None, None, None], ~own
        )

    @torch.no_grad()
    def _keys(self, whole: Float[Tensor, "B2 X Y Z"], channel: Int[Tensor, " B2"]) -> Float[Tensor, "B2 R"]:
        num, slow = len(self.encoder.sequences), self.slow_encoder
        tokens = slow.stem(alone(whole, channel, num), nn.functional.one_hot(channel, num).bool())
        keys: Tensor = self.slow_project(slow.body.pooled(slow.body.top(tokens)))
        return keys

    def losses(self, answer: Matched, params: PretrainParams, contrast: float) -> MicsLosses:
        """`mics_loss` with the bank as it stands."""
        return mics_loss(answer, Bank(self.bank_keys, self.bank_rows), params, contrast)

    @torch.no_grad()
    def follow(self, answer: Matched, params: PretrainParams) -> None:
        """Move the slow copy towards the encoder, and put the step's keys into the bank, oldest out first.

        Keys go in by the rows of their studies, so that the bank does not depend on the number of ranks.
        """
        slow = [*self.slow_encoder.parameters(), *self.slow_project.parameters()]
        fast = [*self.encoder.parameters(), *self.project.parameters()]
        get_ema_multi_avg_fn(params.momentum)(slow, fast, 0)
        counted = torch.nonzero(answer.weight > 0)[:, 0]
        order = counted[answer.row[counted].argsort()]
        keys = answer.units("key")[order].flatten(0, 1)[-len(self.bank_rows) :]
        places = (self.bank_at + torch.arange(len(keys), device=keys.device)) % len(self.bank_rows)
        self.bank_keys[places] = keys
        self.bank_rows[places] = answer.row[order].repeat_interleave(2)[-len(keys) :]
        self.bank_at.add_(len(keys)).remainder_(len(self.bank_rows))

    def pictures(self, views: Pairs, channel: int) -> list[Float[Tensor, "X Y Z"]]:
        """One sequence: whole, masked, and rebuilt."""
        asked = torch.tensor([channel])
        whole = self.encoder.decoded(views.volume, views.present)[:, channel]
        voxels, tokens = self.hidden(views.blocks)
        kept = whole.masked_fill(voxels, 0.0)
        rebuilt = self.decoder(self.encoder.body.top(self._shown(kept, asked, tokens)), asked).float()
        return [whole[0], kept[0], rebuilt[0]]


def mics_loss(matched: Matched, bank: Bank, params: PretrainParams, contrast: float) -> MicsLosses:
    """L_rec + w (L_con + lambda L_dis), over the rows that count.

    Args:
        matched: of all ranks (see `PerStudy.joined`).
        bank: keys of earlier steps.
        params: temperature, share of the soft targets, weight of the discriminator.
        contrast: w.
    """
    masked = row_mean(matched.error.float().mean(dim=1), matched.weight)
    consistency = consistency_loss(matched, bank, params.tau, params.soft_targets)
    each = cross_entropy(matched.told.float().flatten(0, 1), matched.channel.flatten(), reduction="none")
    align = row_mean(each.unflatten(0, (-1, 2)).mean(dim=1), matched.weight)
    total = masked + contrast * (consistency + params.lambda_discriminator * align)
    return MicsLosses(total, masked, consistency, align)


def consistency_loss(matched: Matched, bank: Bank, tau: float, soft: float) -> Float[Tensor, ""]:
    """Find the study by its other sequence, among the batch and the bank; both ways, in the mean.

    Of the target, a share `soft` is what the slow encoder finds alike, the rest is the study itself. Earlier
    keys of the same study are neither: they are left out.
    """
    query, key = matched.units("query"), matched.units("key")
    num, counted = len(query), matched.weight > 0
    rows = torch.cat([matched.row, bank.rows])
    usable = torch.cat([counted, bank.rows >= 0]) & (rows != matched.row[:, None])
    own = torch.eye(num, len(rows), dtype=torch.bool, device=rows.device)
    ways = []
    for one, other in ((0, 1), (1, 0)):
        keys = torch.cat([key[:, other], bank.keys])
        asked, alike = (
            (side @ keys.T / tau).masked_fill(~(usable | own), -torch.inf).log_softmax(dim=1)
            for side in (query[:, one], key[:, one])
        )
        target = soft * alike.exp() + (1 - soft) * own.to(alike.dtype)
        ways.append(-(target * asked.masked_fill(~(usable | own), 0.0)).sum(dim=1))
    return row_mean((ways[0] + ways[1]) / 2, matched.weight)
