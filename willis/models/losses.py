"""The training loss and its three terms (docs/method.md, eq. 9 to 12), on the batch of all ranks together.

`join_ranks` gathers outputs over all ranks differentiably, so that every rank computes the loss of the
whole batch, with every rank's rows as negatives. Its backward adds what all ranks ask of a row; data-parallel
averaging of gradients then gives exactly what one process would get on the joined batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, normalize

from willis.cohort.schema import POOR_FROM
from willis.models.fusion import Pair
from willis.models.head import NUM_CUTS
from willis.models.imputer import Imputation

GATHERED = [field.name for field in fields(Pair) if field.name != "scale"]


@dataclass(frozen=True)
class InSubsets:
    """What is said of cases that are shown less than they have; S subsets of the modalities.

    Attributes:
        logit: of a poor outcome.
        told: something of the subset is there; other places are left out of the loss.
    """

    logit: Float[Tensor, "B S"]
    told: Bool[Tensor, "B S"]

    def columns(self) -> list[Tensor]:
        """Its tensors, in order."""
        return [self.logit, self.told]


@dataclass(frozen=True)
class Scored:
    """What the loss needs of a batch: predictions, the pair to align, targets and who counts.

    Attributes:
        logit: of a poor outcome.
        outcome: 1 poor, 0 good, NaN not known (the row is left out of the outcome loss).
        grade: Rankin score, or grade of another scale; NaN not known.
        weight: 0 for a row that only fills the batch.
        paired: image and text are both present; other rows are masked out of both alignment losses.
        pair: None for a fusion without alignment.
        offsets: d_k of the cumulative logits; None where only poor and good are told apart.
        imputation: how well present modalities were guessed from the others; None where nothing is guessed.
        spread: variance of the logit within good and within poor; None without ISDA.
        embedding: what the head reads; None without ISDA.
        in_subsets: predictions for the same rows given less; None where nobody asked.
    """

    logit: Float[Tensor, " B"]
    outcome: Float[Tensor, " B"]
    grade: Float[Tensor, " B"]
    weight: Float[Tensor, " B"]
    paired: Bool[Tensor, " B"]
    pair: Pair | None
    offsets: Float[Tensor, " K"] | None
    imputation: Imputation | None = None
    spread: Float[Tensor, " 2"] | None = None
    embedding: Float[Tensor, "B R"] | None = None
    in_subsets: InSubsets | None = None

    def margin(self, isda: float) -> Float[Tensor, " B"] | None:
        """a/2 w . Sigma_y w of each row's class (docs/method.md, eq. 53); None without ISDA."""
        if self.spread is None:
            return None
        known = ~self.outcome.isnan()
        of_class = self.spread[torch.where(known, self.outcome, 0.0).long()]
        return isda / 2 * torch.where(known, of_class, 0.0)


@dataclass(frozen=True)
class Losses:
    """The terms, unweighted, and their weighted sum; a term that is switched off is None."""

    total: Float[Tensor, ""]
    outcome: Float[Tensor, ""]
    contrast: Float[Tensor, ""]
    align: Float[Tensor, ""]
    consistency: Float[Tensor, ""] | None = None
    relation: Float[Tensor, ""] | None = None
    imputation: Float[Tensor, ""] | None = None
    subsets: Float[Tensor, ""] | None = None

    def numbers(self) -> dict[str, float]:
        """The terms that there are, by name."""
        terms = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(term.detach()) for name, term in terms.items() if term is not None}


@dataclass(frozen=True)
class ClassWeights:
    """Both classes of each cut weigh alike in all (docs/method.md, eq. 25 and 26).

    Cut k asks: mRS > k? With n_k rows that answer it, n_k1 of them yes, a yes weighs n_k / (2 n_k1) and a no
    n_k / (2 n_k0), so that the weights are 1 in the mean. A binary network asks cut 2 alone: poor or good.

    Weighting by class moves the best log-odds by log(yes / no), the `shift`. Each cut has weights of its own
    because only then is that a number: weights by poor and good would move the other five cuts by an amount
    that differs from patient to patient, and could not be taken back. The loss is asked of logit + shift, so
    the logit itself stays that of the population.

    Attributes:
        yes: weight of a row above cut k.
        no: weight of a row at or below it.

    Reference:
        Prior correction: Saerens et al., Neural Comput 14:21, 2002; King and Zeng, Polit Anal 9:137, 2001.
    """

    yes: Float[Tensor, " 6"]
    no: Float[Tensor, " 6"]

    @classmethod
    def balanced(cls, outcome: Float[Tensor, " N"], grade: Float[Tensor, " N"]) -> Self:
        """Weights from the rows to learn from; a cut that has one answer alone is left as it is.

        Args:
            outcome: 1 poor, 0 good, NaN not known; counts at the cut between 2 and 3.
            grade: mRS 0 to 6, NaN not known; counts at the other cuts.
        """
        known = grade[~grade.isnan()]
        answers = [(known > k).double() for k in range(NUM_CUTS)]
        answers[POOR_FROM - 1] = outcome[~outcome.isnan()].double()
        weights = [_balanced(answer) for answer in answers]
        yes, no = torch.tensor(weights, dtype=torch.float32).unbind(dim=1)
        return cls(yes, no)

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        return replace(self, yes=self.yes.to(device), no=self.no.to(device))

    def at_poor(self) -> Self:
        """The cut between 2 and 3 alone."""
        return replace(self, yes=self.yes[POOR_FROM - 1], no=self.no[POOR_FROM - 1])

    def shift(self) -> Float[Tensor, " 6"]:
        """How far the weights move the best log-odds of each cut."""
        return (self.yes / self.no).log()


def _balanced(answer: Float[Tensor, " N"]) -> tuple[float, float]:
    share = float(answer.mean()) if len(answer) else 0.0
    return (0.5 / share, 0.5 / (1 - share)) if 0 < share < 1 else (1.0, 1.0)


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, in rank order; backward adds up what every rank asks of this rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gather (B, ...) tensors over all ranks in one message: each becomes (ranks x B, ...).

    Ranks must bring equally many rows. In a single process the tensors come back as they are.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.reshape(len(tensor), -1).float() for tensor in tensors], dim=1)
    joined = _GatherRows.apply(flat)  # type: ignore[no-untyped-call]
    widths = [tensor[0].numel() for tensor in tensors]
    parts = joined.split(widths, dim=1)
    return [
        part.reshape(len(joined), *tensor.shape[1:]).to(tensor.dtype)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def join_ranks(scored: Scored) -> Scored:
    """The batch of all ranks together; the same on every rank."""
    pair = [] if scored.pair is None else [getattr(scored.pair, name) for name in GATHERED]
    guessed = [] if scored.imputation is None else scored.imputation.columns()
    embedding = [] if scored.embedding is None else [scored.embedding]
    subsets = [] if scored.in_subsets is None else scored.in_subsets.columns()
    own = [scored.logit, scored.outcome, scored.grade, scored.weight, scored.paired]
    groups = [own, pair, guessed, embedding, subsets]
    gathered = iter(gather_rows([tensor for group in groups for tensor in group]))
    own, pair, guessed, embedding, subsets = ([next(gathered) for _ in group] for group in groups)
    logit, outcome, grade, weight, paired = own
    return replace(
        scored, logit=logit, outcome=outcome, grade=grade, weight=weight, paired=paired,
        pair=scored.pair and replace(scored.pair, **dict(zip(GATHERED, pair, strict=True))),
        imputation=scored.imputation and Imputation(*guessed),
        embedding=embedding[0] if embedding else None,
        in_subsets=scored.in_subsets and InSubsets(*subsets),
    )  # fmt: skip


def outcome_loss(
    logit: Float[Tensor, " B"],
    outcome: Float[Tensor, " B"],
    grade: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    offsets: Float[Tensor, " K"] | None,
    classes: ClassWeights | None = None,
    margin: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over rows with a known outcome; 0, still attached, when there are none.

    Args:
        logit: of a poor outcome, mRS 3 to 6.
        outcome: 1 poor, 0 good, NaN not known.
        grade: mRS 0 to 6; where only poor or good is known (NaN), the cut between 2 and 3 counts alone.
        weight: 0 for rows that do not count.
        offsets: d_k; each row's loss is then the mean over the six cuts of CE(logit - d_k, grade > k).
        classes: weights and shifts of the cuts. The sum is still divided by the rows that count, not by
            their class weights: those of one batch are not those of the split, and the shift would no longer
            be what the weights do (in a batch of one row they would cancel).
        margin: how far each row's logits are moved away from its answers.
    """
    known = ~outcome.isnan()
    at_poor = None if classes is None else classes.at_poor()
    each = _asked(logit, torch.where(known, outcome, 0.0), at_poor, margin)
    if offsets is not None:
        above = (grade[:, None] > torch.arange(len(offsets), device=grade.device)).to(logit.dtype)
        beside = None if margin is None else margin[:, None]
        graded = _asked(logit[:, None] - offsets, above, classes, beside).mean(1)
        each = torch.where(grade.isnan(), each, graded)
    counted = weight * known
    return (each * counted).sum() / counted.sum().clamp(min=1e-9)


def _asked(
    logit: Float[Tensor, "*rows"],
    answer: Float[Tensor, "*rows"],
    classes: ClassWeights | None,
    margin: Tensor | None,
) -> Float[Tensor, "*rows"]:
    """Cross-entropy of each question, weighted by its answer and asked of the shifted logit."""
    if margin is not None:
        logit = logit - (2 * answer - 1) * margin
    if classes is None:
        return binary_cross_entropy_with_logits(logit, answer, reduction="none")
    each = binary_cross_entropy_with_logits(logit + classes.shift(), answer, reduction="none")
    return each * torch.where(answer > 0, classes.yes, classes.no)


def subsets_loss(scored: Scored, classes: ClassWeights | None = None) -> Float[Tensor, ""] | None:
    """`outcome_loss` of what is said given less, over all rows and subsets that have anything to go on."""
    asked = scored.in_subsets
    if asked is None:
        return None
    times = asked.logit.shape[1]
    outcome, grade, weight = (
        value.repeat_interleave(times) for value in (scored.outcome, scored.grade, scored.weight)
    )
    return outcome_loss(
        asked.logit.flatten().float(), outcome, grade, weight * asked.told.flatten(), scored.offsets, classes
    )


def contrast_loss(
    image: Float[Tensor, "B R"], text: Float[Tensor, "B R"], valid: Bool[Tensor, " B"], scale: Tensor
) -> Float[Tensor, ""]:
    """Symmetrical contrast of images and reports; rows that are not valid are neither asked nor negatives.

    Args:
        image: z_v of any length; R contrast width.
        text: z_t.
        valid: both modalities present.
        scale: 1 / tau.

    Returns:
        Mean over valid rows of 1/2 [CE(S, I) + CE(S^T, I)]; 0, still attached, for fewer than two rows.
    """
    similarity = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    similarity = similarity.masked_fill(~(valid[None, :] & valid[:, None]) & ~own, -torch.inf)
    target = torch.arange(len(image), device=image.device)
    each = 0.5 * (
        cross_entropy(similarity, target, reduction="none")
        + cross_entropy(similarity.T, target, reduction="none")
    )
    return (each * valid).sum() / valid.sum().clamp(min=1)


def align_loss(pair: Pair, valid: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Dual semantic alignment; targets carry no gradient, or both tokens would drift to one point.

    Returns:
        Mean over valid rows of 1/2 (1 - cos(g_v(E_v), E_t)) + 1/2 (1 - cos(g_t(E_t), E_v)).
    """
    each = 0.5 * (1 - cosine_similarity(pair.text_from_image, pair.text_token.detach(), dim=-1)) + 0.5 * (
        1 - cosine_similarity(pair.image_from_text, pair.image_token.detach(), dim=-1)
    )
    return (each * valid).sum() / valid.sum().clamp(min=1)


def total_loss(
    scored: Scored,
    lambda_contrast: float,
    lambda_align: float,
    classes: ClassWeights | None = None,
    lambda_imputation: float = 1.0,
    isda: float = 0.0,
    lambda_subsets: float = 1.0,
) -> Losses:
    """L = L_out + lambda_con L_con + lambda_align L_align, over the rows given (see `join_ranks`).

    Where subsets were asked for, lambda_sub L_sub is added, and where absent modalities are guessed,
    lambda_imp L_imp; with ISDA, L_out is that of eq. 53.

    Every term is always computed, a weight of 0 included: a skipped term would leave parameters without a
    gradient, which stops data-parallel training.
    """
    outcome = outcome_loss(
        scored.logit.float(), scored.outcome, scored.grade, scored.weight, scored.offsets, classes,
        scored.margin(isda),
    )  # fmt: skip
    zero = outcome.new_zeros(())
    contrast, align = zero, zero
    if scored.pair is not None:
        valid = scored.paired & (scored.weight > 0)
        contrast = contrast_loss(
            scored.pair.image.float(), scored.pair.text.float(), valid, scored.pair.scale
        )
        align = align_loss(scored.pair, valid)
    total = outcome + lambda_contrast * contrast + lambda_align * align
    subsets = subsets_loss(scored, classes)
    imputation = None if scored.imputation is None else scored.imputation.loss(scored.weight)
    if subsets is not None:
        total = total + lambda_subsets * subsets
    if imputation is not None:
        total = total + lambda_imputation * imputation
    return Losses(total, outcome, contrast, align, imputation=imputation, subsets=subsets)
