"""Bedside scores against worked examples, and baselines fitted on training rows alone."""

import numpy as np
import pandas as pd
import pytest

from willis.errors import CohortError
from willis.evaluation import baselines, scores

PATIENT = {
    "age": 78.0, "nihss": 12.0, "onset_to_admission_h": 4.0, "visual_field_defect": 1.0,
    "glucose_mmol_l": 9.0, "reduced_consciousness": 0.0, "hypertension": 1.0, "diabetes": 0.0,
    "atrial_fibrillation": 1.0, "dense_artery_sign": 1.0, "early_infarct_sign": 1.0, "prestroke_mrs": 2.0,
    "onset_to_treatment_h": 2.0, "thrombolysis": 1.0,
}  # fmt: skip


def frame(**changes):
    return pd.DataFrame([{**PATIENT, **changes}] * 4)


def total(name, **changes):
    return float(scores.score(name, frame(), frame(**changes)).points[0])


@pytest.mark.parametrize(("points", "share"), [(19, 0.11), (24, 0.24), (31, 0.53), (40, 0.85)])
def test_astral_probabilities_are_the_published_ones(points, share):
    assert float(scores.astral_probability(np.array([points]))[0]) == pytest.approx(share, abs=0.01)


def test_astral_of_a_worked_patient():
    assert total("ASTRAL") == 15 + 12 + 2 + 2 + 1 + 0


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({"age": 79.9}, 32), ({"age": 80.0}, 33), ({"onset_to_admission_h": 3.0}, 30),
        ({"glucose_mmol_l": 7.3}, 31), ({"glucose_mmol_l": 3.6}, 32), ({"reduced_consciousness": 1.0}, 35),
    ],
)  # fmt: skip
def test_astral_steps_where_it_is_published_to(changes, points):
    assert total("ASTRAL", **changes) == points


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({}, 2 + 1 + 2), ({"nihss": 10.0}, 0 + 1 + 2), ({"nihss": 20.0}, 2 + 1 + 2),
        ({"nihss": 21.0}, 4 + 1 + 2), ({"age": 59.0}, 2 + 0 + 2), ({"age": 80.0}, 2 + 2 + 2),
    ],
)  # fmt: skip
def test_thrive_of_worked_patients(changes, points):
    assert total("THRIVE", **changes) == points


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({}, 2 + 1 + 1 + 1 + 1 + 2), ({"nihss": 15.0}, 8), ({"nihss": 16.0}, 9), ({"nihss": 4.0}, 6),
        ({"age": 64.0}, 7), ({"age": 80.0}, 9), ({"glucose_mmol_l": 8.0}, 7),
        ({"onset_to_treatment_h": 1.5}, 7), ({"prestroke_mrs": 1.0}, 7),
        ({"thrombolysis": 0.0, "onset_to_treatment_h": np.nan}, 7),
    ],
)  # fmt: skip
def test_dragon_of_worked_patients(changes, points):
    assert total("DRAGON", **changes) == points


def test_an_unknown_item_counts_what_training_patients_had_and_is_reported():
    train = pd.concat([frame(visual_field_defect=1.0), frame(visual_field_defect=0.0)])
    found = scores.score("ASTRAL", train, frame(visual_field_defect=np.nan))
    assert found.points[0] == pytest.approx(32 - 2 + 1)
    assert found.num_filled == 4


def test_a_score_whose_item_is_never_recorded_is_not_reported():
    found = scores.score("DRAGON", frame().drop(columns=["glucose_mmol_l", "dense_artery_sign"]), frame())
    assert found.points is None
    assert found.reason.endswith("training patients have: dense artery sign, glucose")


def rows(n=240, seed=0):
    generator = np.random.default_rng(seed)
    nihss, volume = generator.normal(8, 4, n), generator.exponential(10, n)
    log_odds = 0.3 * (nihss - 8) + 0.05 * (volume - 10)
    return pd.DataFrame(
        {
            "nihss": np.where(generator.random(n) < 0.1, np.nan, nihss),
            "sex": generator.choice(["F", "M", None], n),
            "f_volume_ml": volume,
            "f_territory": generator.choice(["mca", "pca"], n),
            "poor_outcome": (generator.random(n) < 1 / (1 + np.exp(-log_odds))).astype(float),
        }
    )


@pytest.mark.parametrize("kind", baselines.KINDS)
def test_a_baseline_finds_the_signal(kind):
    from sklearn.metrics import roc_auc_score

    train, test = rows(seed=0), rows(seed=1)
    columns = (*baselines.table_columns(train), *baselines.fact_columns(train))
    model = baselines.fit_baseline(kind, "both", train, columns, seed=0)
    assert roc_auc_score(test["poor_outcome"], model.predict(test)) > 0.7


@pytest.mark.parametrize("kind", baselines.KINDS)
def test_changing_test_rows_changes_no_fitted_number(kind):
    train, test = rows(seed=0), rows(seed=1)
    columns = ("nihss", "sex", "f_volume_ml", "f_territory")
    model = baselines.fit_baseline(kind, "both", train, columns, seed=0)
    alone = model.predict(test.iloc[:1])
    wild = test.copy()
    wild.loc[wild.index[1:], ["nihss", "f_volume_ml"]] = 1e6
    wild.loc[wild.index[1:], "f_territory"] = "unseen"
    assert model.predict(wild)[0] == alone[0]
    assert model.design == baselines.Design.fit(train, columns)


def test_a_category_unseen_in_training_is_no_category():
    train = rows()
    design = baselines.Design.fit(train, ["f_territory"])
    strange = train.iloc[:1].assign(f_territory="aca")
    assert design.matrix(strange).tolist() == [[0.0, 0.0]]


def test_columns_that_do_not_vary_in_training_are_left_out():
    train = rows().assign(bmi=25.0, prior_stroke=np.nan)
    assert baselines.Design.fit(train, ["bmi", "prior_stroke", "nihss"]).numeric == ("nihss",)


def test_a_baseline_without_two_classes_is_refused():
    with pytest.raises(CohortError, match="one class"):
        baselines.fit_baseline("logistic", "table", rows().assign(poor_outcome=1.0), ["nihss"], 0)


@pytest.mark.parametrize("kind", baselines.KINDS)
def test_a_baseline_of_fewer_patients_than_folds_still_predicts(kind):
    few = rows().sort_values("poor_outcome")
    few = pd.concat([few.head(6), few.tail(2)])
    assert few["poor_outcome"].sum() == 2
    predicted = baselines.fit_baseline(kind, "table", few, ["nihss", "f_volume_ml"], seed=0).predict(rows())
    assert ((predicted >= 0) & (predicted <= 1)).all()
