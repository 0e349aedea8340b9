"""`willis reports train-reader`: the embedded reader from nothing but synthetic studies, ready for vLLM."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from willis.reports.kept_eyes import EyesRecord, KeptEyes
from willis.reports.reader_language import (
    Language,
    LanguageParams,
    corpus,
    encode_studies,
    train_language,
)
from willis.reports.reader_model import new_reader, save_reader, train_tokenizer
from willis.reports.reader_studies import make_reader_studies
from willis.reports.reader_training import Eyes, EyesParams, Levels, Tick, train_eyes
from willis.training.loop import reuse_freed_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Idefics3ForConditionalGeneration

EYES, LANGUAGE = EyesParams(), LanguageParams()
WITHOUT_INFARCT = 0.25
_CARD = "README.md"
_SUMMARY = "training.json"


_CARD_TEXT = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---

# Willis reader

A vision-language model of {num_parameters:,} parameters that reads DWI, ADC and FLAIR of a brain MRI and
writes a report as JSON. For research, not for diagnosis.

- Architecture: Idefics3, loaded unmodified by vLLM and transformers.
- Input: up to 40 axial levels, 112 x 112 pixels of 2 mm; red is DWI, green ADC, blue FLAIR; the words above
  each, and the measured facts where they are told (`willis/reports/prompt.py`).
- Training: from scratch on {num_studies:,} synthetic studies in real anatomy (ICBM152), {without_infarct:.0%}
  of them without an infarct, each seen by a scanner of its own; seed {seed}. No patient's image was used.
  `willis reports train-reader` makes it again; training.json holds its parameters and losses.
- Limits: it knows acute infarcts, their side, territory and size, and old infarcts, as the synthetic cohort
  draws them. It has seen no tumour, no bleeding apart from an infarct's, no motion, no real scanner.
"""


class ReaderSummary(BaseModel):
    """What the training was; also training.json in the reader's folder.

    Attributes:
        num_parameters: of the reader alone; the heads that help to train it are thrown away.
        eyes_loss, language_loss: means of the last tenth of the steps.
        seconds: per part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_studies: int
    without_infarct: float
    seed: int
    num_parameters: int
    num_bytes: int
    eyes: dict[str, float]
    language: dict[str, float]
    eyes_loss: float
    language_loss: float
    seconds: dict[str, float]


def train_reader(
    out: Path,
    studies_dir: Path,
    *,
    num_studies: int,
    seed: int,
    eyes: EyesParams = EYES,
    language: LanguageParams = LANGUAGE,
    device: str = "cpu",
) -> ReaderSummary:
    """Render studies, train the reader on them, write its folder.

    A run that was killed goes on with its studies, and with its eyes where their training had ended.

    Args:
        out: the reader's folder; replaced when the training has ended.
        studies_dir: where the rendered studies and the trained eyes are kept.
        num_studies: how many to train on.
        seed: of the studies, the weights and the order.
        eyes: training of the vision tower.
        language: training of the language model.
        device: `cpu` or `cuda`.

    Raises:
        CohortError: `studies_dir` holds something else, or the disk is full.
    """
    reuse_freed_memory()
    clock = _Clock()
    with clock.part("studies"):
        studies = make_reader_studies(studies_dir, num_studies, seed, WITHOUT_INFARCT)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus(studies))
    model = new_reader(tokenizer)
    model.to(torch.device(device))  # type: ignore[arg-type]
    levels = Levels(studies, torch.device(device))
    kept, chance = KeptEyes.of(studies_dir, seed, eyes), np.random.default_rng([seed, num_studies])
    looked = kept.load(model) or _looked(kept, model, levels, eyes, chance)
    clock.seconds["eyes"] = looked.seconds
    losses, rng = list[float](), np.random.default_rng([seed, num_studies, 1])
    torch.manual_seed(seed + 1)
    with clock.part("encoding"), _bar("encoding studies", num_studies, []) as tick:
        views = encode_studies(Eyes(model, levels.num_regions).eval(), levels, studies, rng, tick)
    with clock.part("language"), _bar("writing reports", language.steps, losses) as tick:
        train_language(Language(model, tokenizer), views, language, rng, tick)
    unfinished = _saved(out, model, tokenizer)
    summary = ReaderSummary(
        num_studies=num_studies,
        without_infarct=WITHOUT_INFARCT,
        seed=seed,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_bytes=(unfinished / "model.safetensors").stat().st_size,
        eyes=asdict(eyes),
        language=asdict(language),
        eyes_loss=looked.loss,
        language_loss=_late(losses),
        seconds=clock.seconds,
    )
    _put(unfinished, out, summary)
    return summary


def _saved(out: Path, model: "Idefics3ForConditionalGeneration", tokenizer: "Tokenizer") -> Path:
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_reader(unfinished, model, tokenizer)
    return unfinished


def _put(unfinished: Path, out: Path, summary: ReaderSummary) -> None:
    """Add summary and card, and move the folder to its place."""
    (unfinished / _SUMMARY).write_text(summary.model_dump_json(indent=1) + "\n")
    (unfinished / _CARD).write_text(_card(summary))
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def _looked(
    kept: KeptEyes,
    model: "Idefics3ForConditionalGeneration",
    levels: Levels,
    params: EyesParams,
    rng: np.random.Generator,
) -> EyesRecord:
    """Train the eyes and keep them."""
    clock, losses = _Clock(), list[float]()
    with clock.part("eyes"), _bar("looking at slices", params.steps, losses) as tick:
        train_eyes(model, levels, params, rng, tick)
    record = EyesRecord(_late(losses), clock.seconds["eyes"])
    kept.save(model, record)
    return record


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


@contextmanager
def _bar(title: str, total: int, losses: list[float]) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, loss="")

        def tick(done: int, loss: float) -> None:
            losses.append(loss)
            progress.update(task, completed=done + 1, loss=f"loss {loss:.4f}" if loss else "")

        yield tick


def _late(losses: list[float]) -> float:
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def _card(summary: ReaderSummary) -> str:
    return _CARD_TEXT.format(**summary.model_dump())
