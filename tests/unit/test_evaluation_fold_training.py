"""Folds of patients of whom nothing but a table is known."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from willis.evaluation.fold_training import predict_from_table
from willis.params import TrainParams

PARAMS = TrainParams(epochs=6, width=16, contrast_width=8, fusion="concat", learning_rate=1e-2, seed=3)


def test_the_network_learns_from_columns_that_the_schema_does_not_name(tmp_path):
    random = np.random.default_rng(1)
    poor = random.integers(0, 2, 150).astype(float)
    frame = pd.DataFrame(
        {
            "patient_id": [f"patient-{k}" for k in range(150)],
            "poor_outcome": poor,
            "cholesterol": np.where(random.random(150) < 0.1, np.nan, random.normal(6, 1, 150) - 2 * poor),
            "smoker": random.choice(["yes", "no", None], 150),
        }
    )
    parts = ["train"] * 70 + ["validation"] * 20 + ["test"] * 50
    split = dict(zip(frame["patient_id"][:140], parts, strict=True))
    said = predict_from_table(frame, ("cholesterol", "smoker"), split, tmp_path, PARAMS)
    assert said["patient_id"].tolist() == frame["patient_id"][90:140].tolist()
    assert said["p"].between(0, 1).all()
    assert roc_auc_score(poor[90:140], said["p"]) > 0.8
