"""Performance against the outcomes that have arrived."""

import sys
from subprocess import run

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from willis.monitoring.outcomes import performance


def window(num_rows: int, seed: int = 0, known: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(num_rows), 2)
    poor = (rng.random(num_rows) < p).astype(float)
    poor[rng.random(num_rows) >= known] = np.nan
    return pd.DataFrame({"p": p, "poor_outcome": poor})


def test_figures_are_those_of_scikit_learn_on_the_known_outcomes() -> None:
    rows = window(200, known=0.6)
    known = rows.dropna()
    found = performance(rows, min_outcomes=30)
    assert (found.num_predictions, found.num_outcomes) == (200, len(known))
    assert found.auc == pytest.approx(roc_auc_score(known["poor_outcome"], known["p"]))
    assert found.brier == pytest.approx(brier_score_loss(known["poor_outcome"], known["p"]))
    assert found.auc_low < found.auc < found.auc_high
    assert found.brier_low < found.brier < found.brier_high
    assert found.reason == ""


def test_too_few_outcomes_give_a_reason_instead_of_a_figure() -> None:
    found = performance(window(40, known=0.2), min_outcomes=30)
    assert (found.auc, found.brier) == (None, None)
    assert "30 are needed" in found.reason


def test_one_class_gives_a_brier_score_and_says_why_there_is_no_auc() -> None:
    rows = window(50).assign(poor_outcome=0.0)
    found = performance(rows, min_outcomes=30)
    assert found.auc is None
    assert found.brier is not None
    assert found.reason.startswith("0 of 50 outcomes are poor")


def test_an_empty_window_is_no_error() -> None:
    assert performance(pd.DataFrame(), min_outcomes=30).num_predictions == 0


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says() -> None:
    truth = roc_auc_score(*window(200_000, seed=99)[["poor_outcome", "p"]].to_numpy().T)
    inside = 0
    for seed in range(14):
        found = performance(window(80, seed=seed), min_outcomes=30)
        inside += found.auc_low <= truth <= found.auc_high
    assert inside >= 10  # P(fewer than 10 of 14 | 95 %) is below .0005


def test_serving_can_import_it_without_evidently_or_scikit_learn() -> None:
    code = (
        "import sys, willis.monitoring.outcomes; "
        "print([m for m in ('evidently', 'sklearn', 'torch') if m in sys.modules])"
    )
    found = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
