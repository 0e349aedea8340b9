"""Mortality from a table alone: the horizon, who may learn what, and what a killed contest goes on with."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.copenhagen import models
from benchmarks.copenhagen import patients as patients_module
from benchmarks.copenhagen.contest import Contest
from benchmarks.copenhagen.models import Question, forest_handout
from benchmarks.copenhagen.patients import FLAGS, Task, cost_file, read_patients
from benchmarks.rivals.environments import RivalError
from willis.errors import CohortError
from willis.evaluation.plans import dealt_folds
from willis.params import TrainParams

SHORT = TrainParams(epochs=2, width=16, contrast_width=8, fusion="concat", seed=3)


def cost(num_patients: int = 60) -> pd.DataFrame:
    """A table in the shape of the study's; the old die soon, and every ninth patient is lost early."""
    random = np.random.default_rng(2)
    age = random.integers(40, 95, num_patients)
    table = pd.DataFrame({"age": age, "sex": random.choice(["female", "male"], num_patients)})
    table = table.assign(**{flag: random.choice(["no", "yes"], num_patients) for flag in FLAGS})
    table = table.assign(
        strokeScore=random.integers(0, 59, num_patients),
        cholest=random.normal(6, 1, num_patients).round(1),
        time=(random.exponential(20, num_patients) * (115 - age) + 1).astype(int),
        status=1,
    )
    lost = np.arange(num_patients) % 9 == 0
    return table.assign(status=np.where(lost, 0, 1), time=np.where(lost, 200, table["time"]))


@pytest.fixture
def patients(tmp_path) -> pd.DataFrame:
    path = tmp_path / "cost.csv"
    cost().to_csv(path, index=False)
    return read_patients(path)


@pytest.fixture
def task(patients) -> Task:
    return Task.of(patients, 3)


@pytest.fixture
def question(task) -> Question:
    return Question(task, dealt_folds(task.frame, 2, 1, seed=0).folds[0])


# ---- the follow-up, cut ----


def test_the_horizon_cuts_the_follow_up(patients):
    days, died = zip(
        (1095, 1),  # within three years of 365.25 days, which are 1095.75
        (1096, 1),  # after them, so alive when asked
        (1095, 0),  # lost before
        (1096, 0),  # seen alive after
        (4000, 0),
        strict=True,
    )
    task = Task.of(patients.iloc[:5].assign(time=days, status=died), 3)
    assert task.frame["time"].tolist() == [1095, 1096, 1096, 4000]
    assert task.frame["poor_outcome"].tolist() == [1, 0, 0, 0]
    assert (task.num_censored, task.name) == (1, "mortality_3_years")


def test_the_lost_are_left_out_of_later_horizons_alone(patients):
    early = patients.assign(status=0, time=400)
    assert [Task.of(early, years).num_censored for years in (1, 3, 5)] == [0, 60, 60]


# ---- the file ----


def test_flags_become_zero_and_one_and_words_stay(patients):
    written = cost()
    assert patients["diabetes"].tolist() == [float(word == "yes") for word in written["diabetes"]]
    assert patients["sex"].tolist() == written["sex"].tolist()
    assert patients["patient_id"].is_unique


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (cost().drop(columns=["age", "time"]), r"lacks the columns \['age', 'time'\]"),
        (cost().assign(ihd="perhaps"), r"'ihd' holds \['perhaps'\]; it must be yes or no"),
    ],
)
def test_another_table_is_refused(table, reason, tmp_path):
    table.to_csv(tmp_path / "cost.csv", index=False)
    with pytest.raises(CohortError, match=reason):
        read_patients(tmp_path / "cost.csv")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CohortError, match="--data is .*none.rda, which is not a file"):
        cost_file(tmp_path / "none.rda", tmp_path)


def test_without_the_package_the_message_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CohortError, match="cannot be had: `apt-get .*give --data FILE"):
        cost_file(None, tmp_path)


def test_without_the_reader_of_r_data_the_message_says_what_to_give(tmp_path, monkeypatch):
    def no_environment(rival):
        raise RivalError("cannot be installed: no index")

    monkeypatch.setattr(patients_module, "python_of", no_environment)
    with pytest.raises(CohortError, match="what reads it cannot be installed: no index; give --data"):
        read_patients(tmp_path / "cost.rda")


# ---- who sees what ----


def test_the_forest_is_told_how_long_training_patients_lived_and_nothing_of_the_tested(question):
    given, frame = forest_handout(question), question.task.frame.set_index("patient_id")
    assert given.train["days"].tolist() == frame.loc[given.train["patient_id"], "time"].tolist()
    assert given.train["died"].tolist() == frame.loc[given.train["patient_id"], "status"].tolist()
    assert set(given.test) == set(given.train) - {"poor_outcome", "days", "died"} | {"horizon_days"}
    assert set(given.test["horizon_days"]) == {3 * 365.25}
    assert set(given.test["patient_id"]) == set(question.fold.test)


@pytest.mark.parametrize("model", ["willis", "logistic"])
def test_tested_patients_teach_nothing(question, model, tmp_path):
    def said(question: Question, folder: str) -> pd.DataFrame:
        if model == "willis":
            return models.by_network(question, tmp_path / folder, SHORT)
        return models.by_baseline(question, "logistic", 3)

    frame = question.task.frame
    tested = frame["patient_id"].isin(question.fold.test)
    turned = frame["poor_outcome"].where(~tested, 1 - frame["poor_outcome"])
    first = tested & (frame["patient_id"] == min(question.fold.test))
    other = frame.assign(poor_outcome=turned, age=frame["age"].mask(first, 300))
    before = said(question, "before").set_index("patient_id")["p"]
    after = said(Question(Task(3, other, 0), question.fold), "after").set_index("patient_id")["p"]
    moved = frame.loc[first, "patient_id"].iloc[0]
    assert sorted(before.index) == sorted(question.fold.test)
    pd.testing.assert_series_equal(before.drop(moved), after.drop(moved))
    assert before[moved] != after[moved]


# ---- the whole path ----


@pytest.fixture
def quick(monkeypatch):
    """The survival forest's environment does not install; which runs are made is written down."""

    def no_environment(rival):
        raise RivalError("cannot be installed: no index")

    asked: list[str] = []
    attempt = Contest._attempt
    monkeypatch.setattr(models, "python_of", no_environment)
    monkeypatch.setattr(Contest, "_attempt", lambda self, run: (asked.append(run.name), attempt(self, run)))
    return asked


def test_every_model_answers_every_fold_and_leads_are_paired(task, quick, tmp_path):
    plan = dealt_folds(task.frame, 2, 2, seed=0)
    rows = {(row["model"], row["metric"]): row for row in Contest(tmp_path, {task: plan}, SHORT, 2).rows()}
    assert set(rows) == {
        *(
            (name, "auc")
            for name in ("willis", "willis_mean_of_2", "logistic", "boosting", "survival_forest")
        ),
        *(
            (f"{ours} over {rival}", "auc_lead")
            for ours in ("willis", "willis_mean_of_2")
            for rival in ("logistic", "boosting")
        ),
    }
    assert rows["survival_forest", "auc"]["reason"] == "cannot be installed: no index"
    lead = rows["willis_mean_of_2 over logistic", "auc_lead"]
    assert lead["mean"] == pytest.approx(
        rows["willis_mean_of_2", "auc"]["mean"] - rows["logistic", "auc"]["mean"]
    )
    assert {row["num_patients"] for row in rows.values()} == {len(task.frame)}
    assert {row["num_censored"] for row in rows.values()} == {task.num_censored}


def test_the_mean_of_networks_is_scored_and_not_the_mean_of_scores(task, quick, tmp_path):
    plan = dealt_folds(task.frame, 2, 1, seed=0)
    rows = {row["model"]: row["mean"] for row in Contest(tmp_path, {task: plan}, SHORT, 2).rows()}
    outcome = task.frame.set_index("patient_id")["poor_outcome"]
    alone, together = [], []
    for fold in plan.folds:
        said = [
            pd.read_parquet(path).set_index("patient_id").loc[list(fold.test), "p"].to_numpy()
            for path in sorted(Path(tmp_path, "runs").glob(f"*-willis-*-{fold.name}-*.parquet"))
        ]
        truth = outcome.loc[list(fold.test)]
        alone += [roc_auc_score(truth, p) for p in said]
        together.append(roc_auc_score(truth, (said[0] + said[1]) / 2))
    assert len(alone) == 4
    assert rows["willis"] == pytest.approx(np.mean(alone))
    assert rows["willis_mean_of_2"] == pytest.approx(np.mean(together))


def test_what_is_done_is_not_done_again(task, quick, tmp_path):
    def contest(repeats: int) -> Contest:
        return Contest(tmp_path, {task: dealt_folds(task.frame, 2, repeats, seed=0)}, SHORT, 1)

    first = [row for row in contest(1).rows() if row["mean"] is not None]
    done = [name for name in quick if "forest" not in name]
    assert len(done) == 2 * 3
    quick.clear()
    assert [row for row in contest(1).rows() if row["mean"] is not None] == first
    next((tmp_path / "runs").glob("*-boosting-3-r0-f1-*.parquet")).unlink()
    list(contest(2).rows())
    again = [name for name in quick if "forest" not in name]
    of_first_repeat = [name for name in again if "-r0-" in name]
    assert of_first_repeat == ["mortality_3_years-boosting-3-r0-f1"]
    assert len(again) == 1 + 2 * 3
