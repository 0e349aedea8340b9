"""The second half of the reader's training: from picture tokens and words to a report.

Half of the prompts tell facts, and half of those are another study's or invented, so that what is told is
copied and not looked up in the pictures. The other half leaves the reader its pictures alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from willis.cohort.lesions import GRID
from willis.cohort.schema import Sequence
from willis.imaging.lesion import Facts, Load, unknown_facts
from willis.imaging.territory import default_map
from willis.reports.measured import part_of
from willis.reports.prompt import ASK, MEASURED, facts_text
from willis.reports.reader_model import (
    END,
    FAKE,
    GLOBAL,
    IMAGE,
    PAD,
    START,
    TOKENS_PER_PICTURE,
    special_ids,
)
from willis.reports.reader_reports import report_json, target_report
from willis.reports.reader_studies import ACUTE, OLD, ReaderStudies
from willis.reports.reader_training import (
    PATTERNS,
    Eyes,
    Levels,
    PartParams,
    Tick,
    batches,
    descend,
    encode_levels,
    log_volume,
)
from willis.reports.schema import Answer
from willis.reports.slices import SHOWN, level_label

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Idefics3ForConditionalGeneration

TOLD_SHARE = 0.5
OF_ANOTHER, INVENTED = 0.25, 0.25
"""Of the prompts that tell facts, so many tell those of another study, or of none."""
PLANES_SHARE = 0.15
"""Of the prompts that tell facts, so many show single FLAIR planes as the derived SOOP set has them."""
OLD_VISIBLE_ML = 0.3
VOLUME_WEIGHT = 0.1
"""A head that is thrown away afterwards has the model add up volumes before it chooses words."""
FEWEST_LEVELS, MOST_LEVELS = 12, GRID.shape[2]
ALL_LEVELS, ALL_LEVELS_TOLD = 0.8, 0.2
"""So many prompts show every level, the default of `report.num_slices`; the others fewer, as it may ask for.

Volumes are added up over all levels; facts are copied whatever the pictures show.
"""
GROUP = 4
"""Samples of like length that go through the model together, so that little of it is padding."""
_PLANES = ("axial plane, FLAIR", "sagittal plane, FLAIR", "coronal plane, FLAIR")
_IGNORED = -100


@dataclass(frozen=True)
class LanguageParams(PartParams):
    """How the language model is trained."""

    steps: int = 1450
    batch_size: int = 32


@dataclass(frozen=True, eq=False)
class EncodedStudy:
    """One view of a study: its visible levels as picture tokens, and what is true of it.

    Attributes:
        tokens: (L, T, W) float16.
        volumes: (R,) true ml of acute infarct per arterial region; unknown regions last.
        levels: their places on the grid.
        restricted: voxels of acute infarct on each.
        seen: sequences that are there.
        facts: of the infarct, mirrored where the view is.
        old_infarcts: whether a healed one can be seen.
    """

    tokens: Tensor
    volumes: Tensor
    levels: npt.NDArray[np.int64]
    restricted: npt.NDArray[np.int64]
    seen: tuple[Sequence, ...]
    facts: Facts
    old_infarcts: Answer


def encode_studies(
    eyes: Eyes, levels: Levels, studies: ReaderStudies, rng: np.random.Generator, tick: Tick
) -> list[EncodedStudy]:
    """Encode each study twice, as it is and mirrored, with some sequences missing in some views."""
    views = []
    for study, facts in enumerate(studies.facts):
        for mirrored in (False, True):
            pattern = PATTERNS[rng.integers(len(PATTERNS))]
            views.append(encode_study(eyes, levels, study, facts, pattern, mirrored))
        tick(study, 0.0)
    return views


def encode_study(
    eyes: Eyes, levels: Levels, study: int, facts: Facts, pattern: tuple[int, ...], mirrored: bool
) -> EncodedStudy:
    """Encode one view of one study."""
    chosen = np.flatnonzero(levels.visible[study])
    tokens = encode_levels(eyes, levels, study, chosen.tolist(), pattern, mirrored)
    truth = levels.truth[study, chosen]
    seen = tuple(name for name, there in zip(SHOWN, pattern, strict=True) if there)
    shown = mirror_facts(facts) if mirrored else facts
    return EncodedStudy(
        tokens=tokens.half(),
        volumes=torch.tensor(_region_volumes(shown), device=tokens.device),
        levels=chosen,
        restricted=((truth & ACUTE) != 0).sum(axis=(1, 2)),
        seen=seen,
        facts=shown,
        old_infarcts=_old_infarcts(float(((truth & OLD) != 0).sum()) * GRID.voxel_ml, seen),
    )


def _region_volumes(facts: Facts) -> list[float]:
    loads = [load.volume_ml or 0.0 for load in facts.loads]
    return [*loads, max(0.0, (facts.volume_ml or 0.0) - sum(loads))]


def _old_infarcts(volume_ml: float, seen: tuple[Sequence, ...]) -> Answer:
    if {"adc", "flair"}.isdisjoint(seen) or 0 < volume_ml < OLD_VISIBLE_ML:
        return "unknown"
    return "yes" if volume_ml > 0 else "no"


def mirror_facts(facts: Facts) -> Facts:
    """Swap left and right."""
    swap = {"left": "right", "right": "left"}
    loads = {load.region: load.volume_ml for load in facts.loads}
    mirrored = tuple(
        load.model_copy(update={"volume_ml": loads[_other_side(load.region)]}) for load in facts.loads
    )
    side = swap.get(facts.laterality or "", facts.laterality)
    return facts.model_copy(update={"laterality": side, "loads": mirrored})


def _other_side(region: str) -> str:
    if region.endswith("_left"):
        return region.removesuffix("_left") + "_right"
    return region.removesuffix("_right") + "_left"


def corpus(studies: ReaderStudies) -> list[str]:
    """Return the texts that the tokenizer learns from: reports, told facts, labels."""
    everything = frozenset(SHOWN)
    texts = [MEASURED + facts_text(facts) + ASK for facts in studies.facts]
    for facts in studies.facts:
        texts += [report_json(target_report(facts, everything, "no", told)) for told in (True, False)]
    patterns = {tuple(n for n, there in zip(SHOWN, p, strict=True) if there) for p in PATTERNS}
    heights = [float(z) for z in GRID.affine[2, 3] + GRID.spacing_mm[2] * np.arange(GRID.shape[2])]
    labels = [level_label(z, seen, "composite") for z in heights for seen in sorted(patterns)]
    nothing_seen = report_json(target_report(Facts(), frozenset(), "unknown", told=False))
    texts += 20 * [nothing_seen]
    return texts + 20 * [*labels, *_PLANES]


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt and its report.

    Attributes:
        prompt, report: token ids.
        pictures: (P, T, W) picture tokens in the prompt's order.
        volumes: (R,) what the pictures show, ml per arterial region; None where they do not show it.
    """

    prompt: list[int]
    report: list[int]
    pictures: Tensor
    volumes: Tensor | None


@dataclass(frozen=True, eq=False)
class _Read:
    """What the model thinks of a group of samples.

    Attributes:
        words: (N, W) before each token of the reports.
        wanted: (N,) those tokens.
        before: (M, W) before the first, of samples whose pictures show volumes.
    """

    words: Tensor
    wanted: Tensor
    before: Tensor


class Language:
    """Writes prompts and reports as token ids, and trains the language model on them."""

    def __init__(self, model: "Idefics3ForConditionalGeneration", tokenizer: "Tokenizer") -> None:
        self.model, self.tokenizer = model, tokenizer
        self._id = special_ids(tokenizer)
        self._labels: dict[str, list[int]] = {}
        picture = [self._id[FAKE], self._id[GLOBAL]]
        self._picture = [*picture, *[self._id[IMAGE]] * TOKENS_PER_PICTURE, self._id[FAKE]]

    def prompt(self, labels: list[str], told: str) -> list[int]:
        """Return the ids of a prompt as the server's template writes it."""
        ids: list[int] = []
        for label in labels:
            ids += self._label(label) + self._picture
        return ids + self.tokenizer.encode(told + ASK).ids + [self._id[START]]

    def _label(self, label: str) -> list[int]:
        if label not in self._labels:
            self._labels[label] = self.tokenizer.encode(label).ids
        return self._labels[label]

    def sample(self, view: EncodedStudy, other: EncodedStudy, rng: np.random.Generator) -> Sample:
        """Draw a prompt about one study, with or without facts, and the report that it asks for."""
        told = rng.random() < TOLD_SHARE
        facts = _forget_some(_told_facts(view, other, rng), rng) if told else view.facts
        planes = told and rng.random() < PLANES_SHARE
        places = _choose(view, told, rng)[:3] if planes else _choose(view, told, rng)
        heights = GRID.affine[2, 3] + GRID.spacing_mm[2] * view.levels[places]
        labels = [level_label(float(z), view.seen, "composite") for z in heights]
        text = facts_text(facts) if told else ""
        acquired = frozenset({"flair"}) if planes else frozenset(view.seen)
        old_infarcts: Answer = "unknown" if planes else view.old_infarcts
        report = target_report(facts, acquired, old_infarcts, told and bool(text))
        ids = self.tokenizer.encode(report_json(report)).ids + [self._id[END]]
        shown = list(_PLANES[: len(places)]) if planes else labels
        prompt = self.prompt(shown, MEASURED + text if text else "")
        visible = "dwi" in view.seen and not planes
        return Sample(prompt, ids, view.tokens[places], view.volumes if visible else None)

    def loss(self, samples: list[Sample], volume_head: nn.Module) -> Tensor:
        """Cross-entropy of the reports' tokens, and squared error of log ml per region before the first."""
        ordered = sorted(samples, key=lambda sample: len(sample.prompt) + len(sample.report))
        groups = [ordered[start : start + GROUP] for start in range(0, len(ordered), GROUP)]
        read = [self._read(group) for group in groups]
        words, wanted = (
            torch.cat(parts) for parts in zip(*((one.words, one.wanted) for one in read), strict=True)
        )
        of_words = F.cross_entropy(self.model.lm_head(words), wanted)
        seen = [s.volumes for s in ordered if s.volumes is not None]
        if not seen:
            return of_words
        before = torch.cat([one.before for one in read])
        return of_words + VOLUME_WEIGHT * F.mse_loss(volume_head(before), log_volume(torch.stack(seen)))

    def _read(self, samples: list[Sample]) -> "_Read":
        device = samples[0].pictures.device
        rows = [torch.tensor(sample.prompt + sample.report) for sample in samples]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._id[PAD]).to(device)
        wanted = ids.clone()
        for row, sample in enumerate(samples):
            wanted[row, : len(sample.prompt)] = _IGNORED
            wanted[row, len(rows[row]) :] = _IGNORED
        embedded = self.embed(ids, torch.cat([sample.pictures.flatten(0, 1) for sample in samples]))
        hidden = self.model.model.text_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        keep = wanted[:, 1:] != _IGNORED
        last = [(row, len(s.prompt) - 1) for row, s in enumerate(samples) if s.volumes is not None]
        before = hidden[[row for row, _ in last], [place for _, place in last]]
        return _Read(hidden[:, :-1][keep], wanted[:, 1:][keep], before)

    def embed(self, ids: Tensor, pictures: Tensor) -> Tensor:
        """Put the picture tokens where the prompt has their places."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        places = torch.eq(ids, self._id[IMAGE]).unsqueeze(-1).expand_as(embedded)
        return embedded.masked_scatter(places, pictures.to(embedded.dtype))


def _choose(view: EncodedStudy, told: bool, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose levels as `slices.choose_levels` would: all of them, or so many, from any first level."""
    whole = rng.random() < (ALL_LEVELS_TOLD if told else ALL_LEVELS)
    num = MOST_LEVELS if whole else int(rng.integers(FEWEST_LEVELS, MOST_LEVELS))
    every = np.arange(len(view.levels))
    inside = np.zeros(0, np.int64)
    if told and view.restricted.any():
        most = np.argsort(-view.restricted, kind="stable")[: num // 2]
        inside = most[view.restricted[most] > 0]
    rest = np.setdiff1d(every, inside)
    step = -(-len(rest) // max(1, num - len(inside)))
    return np.union1d(inside, rest[int(rng.integers(step)) :: step])


def _told_facts(view: EncodedStudy, other: EncodedStudy, rng: np.random.Generator) -> Facts:
    drawn = rng.random()
    if drawn < INVENTED:
        return invented_facts(rng)
    return other.facts if drawn < INVENTED + OF_ANOTHER else view.facts


def invented_facts(rng: np.random.Generator) -> Facts:
    """Invent facts that agree with themselves, so that what is rare in studies is told as often as the rest.

    Two sides, several territories, volumes of three digits and many lesions have to be copied too.
    """
    volume_ml = float(np.exp(rng.uniform(np.log(0.1), np.log(400))))
    names = [load.region for load in unknown_facts(default_map()).loads]
    hit = rng.choice(len(names), size=int(rng.integers(1, 5)), replace=False)
    shares = dict(zip(hit.tolist(), rng.dirichlet(np.ones(len(hit))), strict=True))
    loads = [Load(region=name, volume_ml=volume_ml * shares.get(n, 0.0)) for n, name in enumerate(names)]
    arteries = {part.artery for n in shares if (part := part_of(names[n]))}
    sides = {names[n].rpartition("_")[2] for n in shares}
    adc = float(rng.uniform(300e-6, 900e-6))
    return Facts(
        infarct_present=True,
        volume_ml=volume_ml,
        num_lesions=int(rng.integers(1, 40)),
        laterality="bilateral" if len(sides) > 1 else "left" if "left" in sides else "right",
        territory="multiple" if len(arteries) > 1 else arteries.pop(),
        adc_lesion_mm2_s=adc,
        dwi_flair_mismatch=bool(rng.random() < 0.5),
        loads=tuple(loads),
    )


def _forget_some(facts: Facts, rng: np.random.Generator) -> Facts:
    """Some prompts lack what could not be measured: no ADC, no FLAIR, no side, or nothing at all."""
    changed: dict[str, int | None] = {
        name: None for name in ("adc_lesion_mm2_s", "dwi_flair_mismatch") if rng.random() < 0.25
    }
    if facts.num_lesions is not None and facts.infarct_present:
        changed["num_lesions"] = int(rng.integers(1, 20)) if rng.random() < 0.3 else facts.num_lesions
    return facts.model_copy(update=changed)


def train_language(
    language: Language,
    views: list[EncodedStudy],
    params: LanguageParams,
    rng: np.random.Generator,
    tick: Tick,
) -> None:
    """Train the language model, its embeddings included; the eyes are not touched."""
    model = language.model.model.text_model
    width, num_regions = views[0].tokens.shape[-1], len(views[0].volumes)
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_regions))
    head.to(views[0].tokens.device)
    model.train()
    order = batches(len(views), params.batch_size, rng)

    def next_loss() -> Tensor:
        chosen = next(order)
        others = rng.integers(len(views), size=len(chosen))
        pairs = zip(chosen, others, strict=True)
        return language.loss([language.sample(views[i], views[j], rng) for i, j in pairs], head)

    descend(nn.ModuleList([model, head]), params, next_loss, tick)
    model.eval()
