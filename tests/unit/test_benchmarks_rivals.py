"""Rivals from outside: what they may see of a fold, and what becomes of one that dies."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.rivals.environments import Rival, RivalError
from benchmarks.rivals.handout import Material, components
from benchmarks.rivals.race import Race
from benchmarks.rivals.standings import Entry, rows_of
from willis.evaluation.folds import OutOfFold
from willis.evaluation.plans import Fold, Plan

PATIENTS = tuple(f"sub-{k:02d}" for k in range(24))
OUTCOME = dict(zip(PATIENTS, [0.0, 0.0, 1.0, 1.0] * 6, strict=True))
FOLDS = tuple(
    Fold(0, number, PATIENTS[number::2], PATIENTS[1 - number :: 2], f"fold {number}")
    for number in range(2)
)  # fmt: skip
PLAN = Plan(FOLDS)
BY_AGE = """
import pandas as pd
from pathlib import Path
test = pd.read_parquet("test.parquet")
with Path(RUNS).open("a") as file:
    print("ran", file=file)
test[["patient_id"]].assign(p=test["table_age"] / 120).to_parquet("predictions.parquet")
"""


@pytest.fixture
def material():
    random = np.random.default_rng(5)
    frame = pd.DataFrame({"patient_id": PATIENTS, "poor_outcome": OUTCOME.values()})
    frame = frame.assign(
        age=random.uniform(40, 90, 24).round(),
        sex=["F", "M", "M"] * 8,
        f_volume_ml=random.gamma(2, 9, 24),
        text="Small infarct.",
        has_text=True,
    )
    return Material(
        frame, random.normal(size=(24, 4)), (random.normal(size=(24, 60)), random.normal(size=(24, 9)))
    )


@pytest.fixture
def race(material, tmp_path):
    return Race(tmp_path, "data", PLAN, 5, lambda: material, lambda rival: Path(sys.executable))


def rival(folder, name, script):
    for suffix, text in ((".py", script), (".txt", "")):
        (folder / f"{name}{suffix}").write_text(text)
    return Rival(name, folder / f"{name}.py", folder / f"{name}.txt")


def test_tested_patients_are_handed_out_without_their_outcome(material):
    for fold in FOLDS:
        given = material.handout(fold)
        assert set(given.test.columns) == set(given.train.columns) - {"poor_outcome"}
        assert list(given.test["patient_id"]) == list(fold.test)
        assert dict(zip(given.train["patient_id"], given.train["poor_outcome"], strict=True)) == {
            patient: OUTCOME[patient] for patient in fold.train
        }


def test_the_outcomes_of_tested_patients_change_nothing_that_is_handed_out(material):
    fold = FOLDS[0]
    tested = material.frame["patient_id"].isin(fold.test)
    turned = material.frame.assign(
        poor_outcome=material.frame["poor_outcome"].where(~tested, 1 - material.frame["poor_outcome"])
    )
    before, after = material.handout(fold), Material(turned, material.text, material.images).handout(fold)
    pd.testing.assert_frame_equal(before.train, after.train)
    pd.testing.assert_frame_equal(before.test, after.test)


def test_a_tested_patients_images_and_table_change_no_other_row(material):
    fold = FOLDS[0]
    at = PATIENTS.index(fold.test[3])
    frame, images = material.frame.copy(), tuple(image.copy() for image in material.images)
    frame.loc[at, ["age", "f_volume_ml"]] = [101.0, 400.0]
    images[0][at] += 1000
    before, after = material.handout(fold), Material(frame, material.text, images).handout(fold)
    pd.testing.assert_frame_equal(before.train, after.train)
    others = before.test["patient_id"] != PATIENTS[at]
    pd.testing.assert_frame_equal(before.test[others], after.test[others])
    assert not before.test[~others].equals(after.test[~others])


def test_image_components_are_those_of_the_training_patients_covariance(material):
    image, train = material.images[1], np.arange(24) % 2 == 1
    centred = image - image[train].mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(image[train].T))
    found = components(image, train)
    assert found.shape == (24, 9)
    np.testing.assert_allclose(np.abs(found), np.abs(centred @ axes[:, ::-1]), atol=1e-9)


def test_a_patient_without_images_has_unknown_components_and_teaches_none(material):
    image = material.images[0].copy()
    train = np.arange(24) % 2 == 1
    image[[1, 4]] = np.nan
    found = components(image, train)
    assert np.isnan(found[[1, 4]]).all()
    fewer = train.copy()
    fewer[1] = False
    np.testing.assert_array_equal(found, components(image, fewer))


def test_a_subset_leaves_out_the_columns_of_the_other_blocks(material):
    given = material.handout(FOLDS[0]).only(("table", "facts"))
    assert list(given.test.columns) == [
        "patient_id",
        "table_age",
        "table_sex_F",
        "table_sex_M",
        "facts_volume_ml",
    ]


def test_a_finished_fold_is_not_run_again_and_a_missing_one_is(race, tmp_path):
    ran = tmp_path / "ran"
    runner = rival(tmp_path, "runner", BY_AGE.replace("RUNS", repr(str(ran))))
    tested = OutOfFold.of(PLAN, OUTCOME)
    first = race.entries([runner], ["all"], [0], tested)
    again = race.entries([runner], ["all"], [0], tested)
    assert ran.read_text().count("ran") == len(FOLDS)
    np.testing.assert_array_equal(first[0].predictions[0], again[0].predictions[0])
    next((tmp_path / "runs").glob("*-r0-f1-*.parquet")).unlink()
    race.entries([runner], ["all"], [0], tested)
    assert ran.read_text().count("ran") == len(FOLDS) + 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "raise RuntimeError('no kernel for this machine')",
            "died: RuntimeError: no kernel for this machine",
        ),
        ("pass", "left no predictions"),
        (BY_AGE.replace("RUNS", "'/dev/null'").replace('test["table_age"]', "float('nan')"), "not a number"),
        (BY_AGE.replace("RUNS", "'/dev/null'").replace("test[[", "test[1:][["), "11 predictions"),
    ],
)
def test_a_dead_rival_becomes_a_row_with_its_reason(race, tmp_path, script, reason):
    tested = OutOfFold.of(PLAN, OUTCOME)
    entries = race.entries([rival(tmp_path, "dying", script)], ["all"], [0], tested)
    (row,) = rows_of(entries, tested, "willis", seed=0)
    assert (row["model"], row["mean"], row["low"], row["high"]) == ("dying", None, None, None)
    assert reason in row["reason"]


def test_a_rival_that_does_not_install_becomes_a_row_for_every_subset_with_the_last_line(material, tmp_path):
    def python(rival):
        raise RivalError("cannot be installed: ERROR: No matching distribution found for dying==1.0")

    race = Race(tmp_path, "data", PLAN, 5, lambda: material, python)
    tested = OutOfFold.of(PLAN, OUTCOME)
    entries = race.entries([rival(tmp_path, "dying", BY_AGE)], ["all", "table_facts"], [0], tested)
    rows = list(rows_of(entries, tested, "willis", seed=0))
    assert [(row["subset"], row["mean"]) for row in rows] == [("all", None), ("table_facts", None)]
    assert all(row["reason"].endswith("No matching distribution found for dying==1.0") for row in rows)


def test_the_mean_over_folds_and_seeds_is_that_of_sklearn_and_leads_are_paired():
    random = np.random.default_rng(0)
    tested = OutOfFold.of(PLAN, OUTCOME)
    good, bad = (tuple(k * tested.outcome + random.normal(size=(2, 1, 24))) for k in (2.0, 0.5))
    entries = [Entry("xgboost", "all", bad, 3.0), Entry("willis", "all", good[:1], 9.0)]
    rival_row, lead, own = rows_of(entries, tested, "willis", seed=0)
    areas = {
        name: np.mean([
            roc_auc_score(tested.outcome[tested.member[0] == k], p[0][tested.member[0] == k])
            for p in seeds for k in range(2)
        ])
        for name, seeds in (("xgboost", bad), ("willis", good[:1]))
    }  # fmt: skip
    assert rival_row["mean"] == pytest.approx(areas["xgboost"])
    assert own["mean"] == pytest.approx(areas["willis"])
    assert lead["mean"] == pytest.approx(areas["willis"] - areas["xgboost"])
    assert (lead["model"], lead["metric"]) == ("willis over xgboost", "auc_lead")
    assert own["low"] <= own["mean"] <= own["high"]
