"""Given folds, sites, periods: who trains, who is tested, and how folds are averaged."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from willis.errors import CohortError, ParamsError
from willis.evaluation import folds
from willis.evaluation.plans import Fold, Plan, dealt_folds, folds_by, labelled_draws, read_folds

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
    read = read_folds(written(plan, tmp_path), "poor_outcome", frame)
    assert read.absent == ()
    assert [fold.name for fold in read.folds] == [f"r{r}-f{k}" for r in range(2) for k in range(5)]
    for repeat in range(2):
        of_repeat = [fold for fold in read.folds if fold.repeat == repeat]
        assert sorted(p for fold in of_repeat for p in fold.test) == PATIENTS
    for fold in read.folds:
        assert set(fold.test) | set(fold.train) == set(PATIENTS)
        assert not set(fold.test) & set(fold.train)


def test_the_first_repeats_alone(plan, frame, tmp_path):
    read = read_folds(written(plan, tmp_path), "poor_outcome", frame, repeats=1)
    assert {fold.repeat for fold in read.folds} == {0}


def test_patients_without_an_outcome_are_left_out_and_named(plan, frame, tmp_path):
    frame.loc[[0, 3], "poor_outcome"] = np.nan
    read = read_folds(written(plan, tmp_path), "poor_outcome", frame)
    assert read.absent == ("sub-00", "sub-03")
    assert not any(p in read.absent for fold in read.folds for p in (*fold.test, *fold.train))


def test_folds_of_another_cohort_are_refused(plan, frame, tmp_path):
    with pytest.raises(CohortError, match="20 patients of .* have no poor_outcome among the ingested"):
        read_folds(written(plan, tmp_path), "poor_outcome", frame.assign(patient_id="x"))


def test_a_fold_of_one_class_is_refused(plan, frame, tmp_path):
    in_fold_0 = plan.loc[(plan["repeat"] == 0) & (plan["fold"] == 0), "participant_id"]
    frame.loc[frame["patient_id"].isin(in_fold_0), "poor_outcome"] = 0.0
    with pytest.raises(CohortError, match="r0-f0 has 4 patients, 0 of them poor"):
        read_folds(written(plan, tmp_path), "poor_outcome", frame)


def test_fewer_patients_than_folds_are_refused(plan, frame, tmp_path):
    plan = plan.assign(fold=plan["participant_id"].str[-2:].astype(int) + plan["repeat"] % 2)
    with pytest.raises(CohortError, match=r"r0-f0 has 1 patients, 0 of them poor.*fewer patients than folds"):
        read_folds(written(plan, tmp_path), "poor_outcome", frame)


def test_a_patient_in_two_folds_of_a_repeat_is_refused(plan, frame, tmp_path):
    plan.loc[len(plan)] = {"task": "poor_outcome", "repeat": 0, "fold": 4, "participant_id": "sub-00"}
    with pytest.raises(ParamsError, match="'sub-00' is in two folds of repeat 0"):
        read_folds(written(plan, tmp_path), "poor_outcome", frame)


@pytest.mark.parametrize("task", ["mortality", "stroke"])
def test_an_unknown_task_is_refused_with_those_of_the_file(plan, frame, tmp_path, task):
    plan.loc[0, "task"] = "nihss"
    with pytest.raises(ParamsError, match=r"\['nihss', 'poor_outcome'\]"):
        read_folds(written(plan, tmp_path), task, frame)


def test_a_file_without_the_columns_is_refused(plan, frame, tmp_path):
    with pytest.raises(ParamsError, match=r"lacks columns \['fold'\]"):
        read_folds(written(plan.drop(columns="fold"), tmp_path), "poor_outcome", frame)
    with pytest.raises(ParamsError, match="does not exist"):
        read_folds(tmp_path / "none.tsv", "poor_outcome", frame)


def test_a_patient_who_is_not_tested_in_every_repeat_is_refused(plan, frame, tmp_path):
    with pytest.raises(CohortError, match="1 patients are not tested in every repeat"):
        read_folds(written(plan.drop(index=3), tmp_path), "poor_outcome", frame)


# ---- sites and periods ----


@pytest.fixture
def seen(frame):
    """Twenty patients of three sites, scanned a day apart."""
    days = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(20), "D")
    return frame.assign(site=[("north", "south", "east")[k % 3] for k in range(20)], event_timestamp=days)


def test_each_site_is_tested_by_all_others(seen):
    plan = folds_by("site", seen)
    assert [fold.label for fold in plan.folds] == ["east", "north", "south"]
    sites = dict(zip(seen["patient_id"], seen["site"], strict=True))
    for fold in plan.folds:
        assert fold.test == tuple(p for p in PATIENTS if sites[p] == fold.label)
        assert fold.train == tuple(p for p in PATIENTS if sites[p] != fold.label)


def test_a_site_of_one_outcome_is_trained_on_and_named_but_not_tested(seen):
    seen.loc[seen["site"] == "east", "poor_outcome"] = 0.0
    plan = folds_by("site", seen)
    assert [fold.label for fold in plan.folds] == ["north", "south"]
    assert plan.untested == (
        "east: 6 patients, 0 of them poor; both outcomes must occur there and elsewhere",
    )
    of_east = set(seen.loc[seen["site"] == "east", "patient_id"])
    assert all(of_east <= set(fold.train) for fold in plan.folds)


def test_patients_whose_site_is_unknown_are_trained_on(seen):
    seen.loc[0, "site"] = None
    plan = folds_by("site", seen)
    assert [fold.label for fold in plan.folds] == ["east", "north", "south"]
    assert all("sub-00" in fold.train for fold in plan.folds)


def test_one_site_cannot_be_left_out(seen):
    with pytest.raises(CohortError, match=r"1 site\(s\), \['north'\]"):
        folds_by("site", seen.assign(site="north"))


def test_each_period_is_tested_by_those_before_it(seen):
    plan = folds_by("period", seen.sample(frac=1, random_state=1))
    assert [fold.test for fold in plan.folds] == [tuple(PATIENTS[k : k + 4]) for k in (4, 8, 12, 16)]
    assert [fold.train for fold in plan.folds] == [tuple(PATIENTS[:k]) for k in (4, 8, 12, 16)]
    assert plan.folds[0].label == "2026-01-05 to 2026-01-08"


def test_scans_of_one_moment_are_of_one_period(seen):
    seen.loc[3:5, "event_timestamp"] = seen.loc[3, "event_timestamp"]
    for fold in folds_by("period", seen).folds:
        assert len({"sub-03", "sub-04", "sub-05"} & set(fold.test)) in (0, 3)
        times = seen.set_index("patient_id")["event_timestamp"]
        assert times[list(fold.train)].max() < times[list(fold.test)].min()


def test_a_period_of_one_outcome_is_refused(seen):
    seen.loc[8:11, "poor_outcome"] = 0.0
    with pytest.raises(CohortError, match="period 2 of 5 has 4 patients, 0 of them poor"):
        folds_by("period", seen)


# ---- draws for a learning curve ----


@pytest.fixture
def split(frame):
    return frame.assign(split=["test"] * 8 + ["train", "validation", "calibration"] * 4)


def test_draws_learn_from_so_many_patients_and_test_the_test_split(split):
    plan = labelled_draws(split, 6, repeats=3, seed=1)
    assert [(fold.repeat, fold.number) for fold in plan.folds] == [(0, 0), (1, 0), (2, 0)]
    for fold in plan.folds:
        assert fold.test == tuple(PATIENTS[:8])
        assert len(set(fold.train)) == 6
        assert set(fold.train) <= set(PATIENTS[8:])
    assert len({fold.train for fold in plan.folds}) == 3


def test_a_larger_draw_holds_the_smaller_one_of_its_repeat(split):
    small, large = (labelled_draws(split, num, repeats=2, seed=1) for num in (5, 9))
    for less, more in zip(small.folds, large.folds, strict=True):
        assert more.train[:5] == less.train


def test_a_draw_of_more_patients_than_there_are_is_refused(split):
    with pytest.raises(ParamsError, match="13 patients are asked for; 12 outside the test split"):
        labelled_draws(split, 13, repeats=1, seed=1)


def test_a_draw_of_one_outcome_is_refused(split):
    with pytest.raises(ParamsError, match="a draw of 1 has 1 patients, . of them poor; ask for more"):
        labelled_draws(split, 1, repeats=1, seed=1)


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


def plan_of(member):
    """The plan behind (repeats, n) fold numbers."""
    return Plan(
        tuple(
            Fold(
                repeat,
                int(k),
                tuple(np.flatnonzero(row == k)),
                tuple(np.flatnonzero(row != k)),
                f"{repeat}-{k}",
            )
            for repeat, row in enumerate(member)
            for k in np.unique(row)
        )
    )


def test_every_fold_has_the_area_of_its_own_patients(predicted):
    outcome, predictions, member = predicted
    found = folds.summarise(*predicted, plan_of(member), seed=0).folds
    assert [fold.label for fold in found] == [f"{r}-{k}" for r in range(2) for k in range(4)]
    second = member[1] == 2
    assert (found[6].num_training, found[6].num_tested, found[6].num_poor) == (90, 30, outcome[second].sum())
    for model in found[6].models:
        expected = roc_auc_score(outcome[second], predictions[model.name][1][second])
        assert model.auc.value == pytest.approx(expected)
        assert model.auc.low < model.auc.value < model.auc.high


def test_the_mean_over_folds_is_that_of_sklearn(predicted):
    outcome, predictions, member = predicted
    found = folds.summarise(outcome, predictions, member, plan_of(member), seed=0)
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
    found = folds.summarise(*predicted, plan_of(predicted[2]), seed=0)
    better, worse = (next(m for m in found.models if m.name == name) for name in ("willis", "boosting"))
    lead = found.leads[0]
    assert lead.over == "boosting"
    assert lead.auc.value == pytest.approx(better.auc.value - worse.auc.value)
    assert lead.auc.low > 0


def test_a_model_against_itself_leads_by_nothing(predicted):
    outcome, predictions, member = predicted
    same = {"boosting": predictions["willis"], "willis": predictions["willis"]}
    lead = folds.summarise(outcome, same, member, plan_of(member), seed=0).leads[0].auc
    assert (lead.value, lead.low, lead.high) == (0.0, 0.0, 0.0)


def test_resampling_a_patient_moves_every_fold_that_tests_them(predicted):
    outcome, predictions, member = predicted
    once = np.ones((1, 120))
    draws = folds.mean_area_draws(outcome, predictions["willis"], member, once)
    assert draws[0] == pytest.approx(folds.fold_areas(outcome, predictions["willis"], member).mean())


# ---- dealt folds ----


def test_dealt_folds_have_the_same_share_of_each_outcome_and_test_everybody_once(frame):
    frame = frame.assign(poor_outcome=[1.0] * 5 + [0.0] * 14 + [np.nan])
    plan = dealt_folds(frame, 5, 2, seed=4)
    outcome = dict(zip(frame["patient_id"], frame["poor_outcome"], strict=True))
    assert [fold.name for fold in plan.folds] == [f"r{r}-f{k}" for r in range(2) for k in range(5)]
    for repeat in range(2):
        of_repeat = [fold for fold in plan.folds if fold.repeat == repeat]
        assert sorted(p for fold in of_repeat for p in fold.test) == PATIENTS[:19]
    for fold in plan.folds:
        assert sum(outcome[p] for p in fold.test) == 1
        assert set(fold.train) == set(PATIENTS[:19]) - set(fold.test)


def test_fewer_repeats_are_the_first_of_more_and_another_seed_deals_anew(frame):
    two, one = dealt_folds(frame, 5, 2, seed=4).folds, dealt_folds(frame, 5, 1, seed=4).folds
    assert two[:5] == one
    assert two[:5] != two[5:]
    assert one != dealt_folds(frame, 5, 1, seed=5).folds


def test_an_outcome_that_cannot_be_in_every_fold_is_refused(frame):
    few = frame.assign(poor_outcome=[1.0] * 3 + [0.0] * 17)
    with pytest.raises(CohortError, match="20 patients, 3 of them poor, cannot be dealt into 5 folds"):
        dealt_folds(few, 5, 1, seed=0)
