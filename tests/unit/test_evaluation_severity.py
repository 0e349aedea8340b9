"""NIHSS as an ordinal outcome: its grades, the points that a prediction stands for, the correlation."""

import numpy as np
import pandas as pd
import pytest

from willis.cohort.schema import CLINICAL_COLUMNS
from willis.evaluation.severity import (
    CUTS,
    NihssScale,
    expected_points,
    pearson,
    points_of_grades,
    summarise,
)


def test_a_grade_counts_the_cuts_that_are_reached() -> None:
    points = [0, 1, 4, 5, 7, 8, 24, 42, np.nan]
    table = NihssScale().table(pd.DataFrame({"nihss": points}))
    expected = [sum(value >= cut for cut in CUTS) for value in points[:-1]]
    assert table["mrs"].tolist()[:-1] == expected
    assert table["poor_outcome"].tolist()[:-1] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert table[["mrs", "poor_outcome"]].iloc[-1].isna().all()


def test_the_logit_is_about_moderate_and_worse() -> None:
    scale = NihssScale()
    assert CUTS[scale.poor_from - 1] == 5
    assert scale.num_cuts == len(CUTS)


def test_of_the_table_age_alone_is_known() -> None:
    columns = [column.name for column in CLINICAL_COLUMNS]
    frame = pd.DataFrame({name: [1.0, 2.0] for name in (*columns, "f_volume_ml", "mrs")})
    assert {c for c in NihssScale().table(frame).columns if c in columns} == {"age"}


def test_expected_points_are_the_mean_over_grades() -> None:
    logit, offsets, of_grade = (
        np.array([-1.0, 0.7]),
        np.array([-0.5, 0.0, 2.0]),
        np.array([0.0, 1.0, 4.0, 9.0]),
    )
    for one, found in zip(logit, expected_points(logit, offsets, of_grade), strict=True):
        above = [1.0, *(1 / (1 + np.exp(-(one - d))) for d in offsets), 0.0]
        mean = sum((above[k] - above[k + 1]) * of_grade[k] for k in range(4))
        assert found == pytest.approx(mean)


def test_a_grade_stands_for_the_mean_of_its_training_patients() -> None:
    found = points_of_grades(np.array([0.0, 1.0, 6.0, 7.0, 7.0, 40.0, 30.0]))
    assert found[0] == 0 and found[1] == 1
    assert found[CUTS.index(6) + 1] == pytest.approx(20 / 3)
    assert found[-1] == 35
    assert found[CUTS.index(2) + 1] == 2  # nobody has two points: where the grade begins


def test_the_correlation_of_a_resample_is_numpy_s_on_repeated_patients() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=(2, 30))
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=5).astype(float)
    for row, found in zip(counts, pearson(truth, predicted, counts), strict=True):
        repeated = np.repeat(np.arange(30), row.astype(int))
        assert found == pytest.approx(np.corrcoef(truth[repeated], predicted[repeated])[0, 1])


def test_the_lead_is_paired_and_finds_the_better_model() -> None:
    rng = np.random.default_rng(1)
    points = {f"p{k}": float(value) for k, value in enumerate(rng.poisson(6, 200))}
    noise = {"willis": 1.0, "support vectors": 6.0, "boosting": 1.0}
    found = {
        name: {(r, p): v + rng.normal(0, sd) for r in range(2) for p, v in points.items()}
        for name, sd in noise.items()
    }
    result = summarise(points, found, seed=0)
    assert (result.num_patients, result.num_repeats) == (200, 2)
    leads = {lead.over: lead.r for lead in result.leads}
    assert leads["support vectors"].low > 0
    assert leads["boosting"].low < 0 < leads["boosting"].high
