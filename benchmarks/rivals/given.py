"""What a rival's script is given, and how it may spend its budget.

Runs in the rival's own environment. The working directory holds train.parquet (with outcomes) and
test.parquet (without); predictions.parquet is left there whole.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

Numbers: TypeAlias = npt.NDArray[np.float64]
Settings: TypeAlias = dict[str, Any]
NUM_PARTS = 5


@dataclass(frozen=True)
class Given:
    """One fold: columns without ids and outcomes, the training patients' outcomes, budget and seed."""

    train: pd.DataFrame
    outcome: Numbers
    test: pd.DataFrame
    budget_s: float
    seed: int


@dataclass(frozen=True)
class Part:
    """The training patients dealt once more: those to fit on, and those to stop early on and to choose by."""

    train: pd.DataFrame
    outcome: Numbers
    validation: pd.DataFrame
    validation_outcome: Numbers
    test: pd.DataFrame
    seed: int


Fit: TypeAlias = Callable[[Settings, Part], tuple[Numbers, Numbers]]
"""Probabilities of a part's validation patients and of the tested patients."""


def answer(predict: Callable[[Given], Numbers]) -> None:
    """Be the whole of a script: read the fold, predict, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, required=True, help="CPU seconds")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    train, test = pd.read_parquet("train.parquet"), pd.read_parquet("test.parquet")
    given = Given(
        train.drop(columns=["patient_id", "poor_outcome"]),
        train["poor_outcome"].to_numpy(np.float64),
        test.drop(columns="patient_id"),
        arguments.budget,
        arguments.seed,
    )
    partial = Path("predictions.partial")
    test[["patient_id"]].assign(p=predict(given)).to_parquet(partial, index=False)
    partial.replace("predictions.parquet")


def search(
    given: Given, candidates: Callable[[np.random.Generator], Iterable[Settings]], fit: Fit
) -> Numbers:
    """Try settings on the columns of numbers until the budget is spent; predict by the five fits of the best.

    The best has the smallest log loss on the patients left out of each fit, training patients all. The first
    setting is always tried to its end.
    """
    parts = list(_parts(given))
    best_loss, best = np.inf, np.full(len(given.test), np.nan)
    for settings in candidates(np.random.default_rng(given.seed)):
        started = time.process_time()
        said = [fit(settings, part) for part in parts]
        loss = float(np.mean([_loss(part, p) for part, (p, _) in zip(parts, said, strict=True)]))
        if loss < best_loss:
            best_loss, best = loss, np.mean([p for _, p in said], axis=0)
        now = time.process_time()
        if now + (now - started) > given.budget_s:
            break
    return best


def _parts(given: Given) -> Iterator[Part]:
    train, test = (frame.select_dtypes("number") for frame in (given.train, given.test))
    dealt = StratifiedKFold(NUM_PARTS, shuffle=True, random_state=given.seed)
    for fitted, kept in dealt.split(train, given.outcome):
        yield Part(
            train.iloc[fitted],
            given.outcome[fitted],
            train.iloc[kept],
            given.outcome[kept],
            test,
            given.seed,
        )


def _loss(part: Part, p: Numbers) -> float:
    return float(log_loss(part.validation_outcome, np.clip(p, 1e-6, 1 - 1e-6), labels=[0, 1]))
