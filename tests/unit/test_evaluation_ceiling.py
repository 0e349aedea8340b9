"""The ceiling: read by evaluation alone, and a result above it is a leak."""

import json

import numpy as np
import pandas as pd
import pytest

from willis.errors import CohortError, LeakError
from willis.evaluation import ceiling, metrics
from willis.models.decision import sigmoid


@pytest.fixture
def known():
    """300 patients whose outcome was drawn from a known probability."""
    generator = np.random.default_rng(11)
    full = sigmoid(generator.normal(-0.5, 1.3, 300))
    outcome = (generator.random(300) < full).astype(float)
    truth = ceiling.Truth(full=full, image=None, table=None, expected={"preset": "published", "full": 0.8})
    return truth, outcome, metrics.bootstrap_counts(300, 1000, seed=0)


def test_the_outcome_itself_is_a_leak(known):
    truth, outcome, counts = known
    with pytest.raises(LeakError, match="table boosting: AUC 1.000 exceeds that of the true probability"):
        ceiling.refuse_leaks(truth, outcome, {"table boosting": outcome}, counts)


def test_a_hint_of_the_outcome_is_a_leak(known):
    truth, outcome, counts = known
    with pytest.raises(LeakError):
        ceiling.refuse_leaks(truth, outcome, {"model": truth.full + 0.15 * outcome}, counts)


def test_the_truth_and_worse_are_no_leak(known):
    truth, outcome, counts = known
    noisy = truth.full + np.random.default_rng(0).normal(0, 0.1, 300)
    ceiling.refuse_leaks(truth, outcome, {"truth": truth.full, "noisy": noisy}, counts)


def test_an_honest_rival_of_the_truth_is_seldom_called_a_leak():
    """A 99 % interval lies above 0 in about 1 of 200 samples; allow small-sample error."""
    called = 0
    for seed in range(150):
        generator = np.random.default_rng(seed)
        log_odds = generator.normal(-0.5, 1.2, 90)
        full = sigmoid(log_odds)
        outcome = (generator.random(90) < full).astype(float)
        truth = ceiling.Truth(full, None, None, {})
        rival = log_odds + generator.normal(0, 0.3, 90)
        try:
            ceiling.refuse_leaks(truth, outcome, {"m": rival}, metrics.bootstrap_counts(90, 400, seed))
        except LeakError:
            called += 1
    assert called <= 4


def test_the_ceiling_reports_the_lead_over_the_truth(known):
    truth, outcome, counts = known
    found = ceiling.ceiling_result(truth, outcome, np.round(truth.full, 1), counts)
    assert found.lead_over_truth.low <= found.lead_over_truth.value <= found.lead_over_truth.high
    assert (found.expected_full, found.preset, found.image) == (0.8, "published", None)


def cohort_at(folder, source):
    folder.mkdir(exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Willis": {"source": source}}))
    return folder


def test_a_real_cohort_has_no_ceiling_and_says_why(tmp_path):
    truth, reason = ceiling.read_truth(cohort_at(tmp_path / "soop", "soop"), ["sub-1"])
    assert truth is None
    assert "'soop'" in reason


def test_the_truth_comes_in_the_order_of_the_patients(tmp_path):
    cohort = cohort_at(tmp_path / "c", "synthetic")
    folder = cohort / "derivatives" / "truth"
    folder.mkdir(parents=True)
    pd.DataFrame({"patient_id": ["a", "b", "c"], "p_poor": [0.1, 0.2, 0.3]}).to_parquet(
        folder / "truth.parquet"
    )
    truth, reason = ceiling.read_truth(cohort, ["c", "a"])
    assert reason == ""
    assert truth.full.tolist() == [0.3, 0.1]
    with pytest.raises(CohortError, match="lacks 1 test patients, first 'z'"):
        ceiling.read_truth(cohort, ["a", "z"])


def test_a_folder_that_is_no_cohort_is_refused(tmp_path):
    with pytest.raises(CohortError, match="dataset_description.json cannot be read"):
        ceiling.source_of(tmp_path)
