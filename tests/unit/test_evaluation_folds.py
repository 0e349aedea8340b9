"""Given folds: who trains, who is tested, and how folds are averaged."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from willis.errors import CohortError, ParamsError
from willis.evaluation import folds

PATIENTS = [f"sub-{k:02d}" for k in range(20)]


@pytest.fixture
def frame():
    return pd.DataFrame({"patient_id": PATIENTS, "poor_outcome": [0.0, 1.0] * 10})


@pytest.fixture
def plan():
    return pd.DataFrame(
        [
            {"task": "poor_outcome", "repeat": r, "fold": (k // 2 + r) % 5, "participant_id": p}
            for r in range(2)
            for k, p in enumerate(PATIENTS)
        ]
    )


def written(plan, folder):
    path = folder / "folds.tsv"
    plan.to_csv(path, sep="\t", index=False)
    return path


def test_every_patient_is_tested_once_per_repeat_and_never_trains_there(plan, frame, tmp_path):
    found, absent = folds.read_folds(written(plan, tmp_path), "poor_outcome", frame)
    assert absent == ()
    assert [fold.name for fold in found] == [f"r{r}-f{k}" for r in range(2) for k in range(5)]
    for repeat in range(2):
        of_repeat = [fold for fold in found if fold.repeat == repeat]
        assert sorted(p for fold in of_repeat for p in fold.test) == PATIENTS
    for fold in found:
        assert set(fold.test) | set(fold.train) == set(PATIENTS)
        assert not set(fold.test) & set(fold.train)


def test_the_first_repeats_alone(plan, frame, tmp_path):
    found, _ = folds.read_folds(written(plan, tmp_path), "poor_outcome", frame, repeats=1)
    assert {fold.repeat for fold in found} == {0}


def test_patients_without_an_outcome_are_left_out_and_named(plan, frame, tmp_path):
    frame.loc[[0, 3], "poor_outcome"] = np.nan
    found, absent = folds.read_folds(written(plan, tmp_path), "poor_outcome", frame)
    assert absent == ("sub-00", "sub-03")
    assert not any(p in absent for fold in found for p in (*fold.test, *fold.train))


def test_folds_of_another_cohort_are_refused(plan, frame, tmp_path):
    with pytest.raises(CohortError, match="20 patients of .* have no outcome among the ingested"):
        folds.read_folds(written(plan, tmp_path), "poor_outcome", frame.assign(patient_id="x"))


def test_a_fold_of_one_class_is_refused(plan, frame, tmp_path):
    in_fold_0 = plan.loc[(plan["repeat"] == 0) & (plan["fold"] == 0), "participant_id"]
    frame.loc[frame["patient_id"].isin(in_fold_0), "poor_outcome"] = 0.0
    with pytest.raises(CohortError, match="r0-f0 has 4 patients, 0 of them poor"):
        folds.read_folds(written(plan, tmp_path), "poor_outcome", frame)


def test_fewer_patients_than_folds_are_refused(plan, frame, tmp_path):
    plan = plan.assign(fold=plan["participant_id"].str[-2:].astype(int) + plan["repeat"] % 2)
    with pytest.raises(CohortError, match=r"r0-f0 has 1 patients, 0 of them poor.*fewer patients than folds"):
        folds.read_folds(written(plan, tmp_path), "poor_outcome", frame)


def test_a_patient_in_two_folds_of_a_repeat_is_refused(plan, frame, tmp_path):
    plan.loc[len(plan)] = {"task": "poor_outcome", "repeat": 0, "fold": 4, "participant_id": "sub-00"}
    with pytest.raises(ParamsError, match="'sub-00' is in two folds of repeat 0"):
        folds.read_folds(written(plan, tmp_path), "poor_outcome", frame)


@pytest.mark.parametrize("task", ["nihss", "mortality"])
def test_an_unknown_task_is_refused_with_those_of_the_file(plan, frame, tmp_path, task):
    plan.loc[0, "task"] = "nihss"
    with pytest.raises(ParamsError, match=r"\['nihss', 'poor_outcome'\]"):
        folds.read_folds(written(plan, tmp_path), task, frame)


def test_a_file_without_the_columns_is_refused(plan, frame, tmp_path):
    with pytest.raises(ParamsError, match=r"lacks columns \['fold'\]"):
        folds.read_folds(written(plan.drop(columns="fold"), tmp_path), "poor_outcome", frame)
    with pytest.raises(ParamsError, match="does not exist"):
        folds.read_folds(tmp_path / "none.tsv", "poor_outcome", frame)


def test_validation_patients_come_from_training_in_the_same_share_of_each_class():
    outcome = {f"p{k}": float(k % 4 == 0) for k in range(400)}
    chosen = folds.validation_of(tuple(outcome), outcome, seed=1)
    assert sum(outcome[p] for p in chosen) == 15
    assert len(chosen) == 60
    assert chosen == folds.validation_of(tuple(reversed(outcome)), outcome, seed=1)
    assert chosen != folds.validation_of(tuple(outcome), outcome, seed=2)


@pytest.fixture
def predicted():
    generator = np.random.default_rng(0)
    outcome = (generator.random(120) < 0.4).astype(float)
    good, bad = (outcome * s + generator.normal(size=(2, 120)) for s in (1.5, 0.3))
    member = np.stack([generator.permutation(np.arange(120) % 4) for _ in range(2)])
    return outcome, {"boosting": bad, "willis": good}, member


def test_the_mean_over_folds_is_that_of_sklearn(predicted):
    outcome, predictions, member = predicted
    found = folds.summarise(outcome, predictions, member, (), seed=0)
    for model in found.models:
        areas = [
            roc_auc_score(outcome[member[r] == k], predictions[model.name][r][member[r] == k])
            for r in range(2)
            for k in range(4)
        ]
        assert model.auc.value == pytest.approx(np.mean(areas))
        assert model.fold_sd == pytest.approx(np.std(areas))
        assert model.auc.low < model.auc.value < model.auc.high


def test_the_lead_is_paired_and_finds_the_better_model(predicted):
    found = folds.summarise(*predicted, (), seed=0)
    better, worse = (next(m for m in found.models if m.name == name) for name in ("willis", "boosting"))
    lead = found.leads[0]
    assert lead.over == "boosting"
    assert lead.auc.value == pytest.approx(better.auc.value - worse.auc.value)
    assert lead.auc.low > 0


def test_a_model_against_itself_leads_by_nothing(predicted):
    outcome, predictions, member = predicted
    same = {"boosting": predictions["willis"], "willis": predictions["willis"]}
    lead = folds.summarise(outcome, same, member, (), seed=0).leads[0].auc
    assert (lead.value, lead.low, lead.high) == (0.0, 0.0, 0.0)


def test_resampling_a_patient_moves_every_fold_that_tests_them(predicted):
    outcome, predictions, member = predicted
    once = np.ones((1, 120))
    draws = folds.mean_area_draws(outcome, predictions["willis"], member, once)
    assert draws[0] == pytest.approx(folds.fold_areas(outcome, predictions["willis"], member).mean())
