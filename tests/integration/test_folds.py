"""Cross-validation trains the real network on small data, goes on after a kill, and sees no test outcome."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.fixtures.arrays import write_tiny_cohort
from willis.errors import ParamsError
from willis.evaluation.baselines import fit_baseline
from willis.evaluation.fold_training import train_fold
from willis.evaluation.folds import evaluate_folds, validation_of
from willis.evaluation.learning_curve import learning_curve
from willis.evaluation.metrics import auc
from willis.evaluation.patients import Cohort
from willis.evaluation.plans import folds_by, known_values, read_folds
from willis.evaluation.results import LearningCurve
from willis.evaluation.severity import evaluate_severity
from willis.params import PretrainParams, TrainParams
from willis.pretraining.loop import pretrain_encoder

SUBSETS = ("image only", "text only", "table only", "image and text", "image and table", "text and table")
MODELS = {"willis", "boosting", "logistic"} | {f"willis: {subset}" for subset in SUBSETS}
PARAMS = TrainParams(epochs=2, width=32, contrast_width=16, batch_size=32, num_workers=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    cohort = write_tiny_cohort(root, num_patients=90, seed=2)
    table = pd.read_parquet(cohort.features / "training_table.parquet")
    labelled = table.loc[table["poor_outcome"].notna(), "patient_id"].tolist()
    plan = pd.DataFrame({"task": "poor_outcome", "repeat": 0, "participant_id": labelled})
    plan["fold"] = range(len(plan))
    plan["fold"] %= 2
    plan.to_csv(root / "folds.tsv", sep="\t", index=False)
    return cohort, root / "folds.tsv"


@pytest.fixture(scope="module")
def ran(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    cohort, plan = tiny
    return out, evaluate_folds(cohort.ingest, cohort.features, planned(cohort, plan), out, PARAMS)


def planned(cohort, path):
    return read_folds(path, "poor_outcome", Cohort.read(cohort.ingest, cohort.features).frame)


def test_every_model_predicts_every_patient_once(ran, tiny):
    out, found = ran
    assert {model.name for model in found.models} == MODELS
    assert {lead.over for lead in found.leads} == MODELS - {"willis"}
    assert found.num_patients == len(pd.read_csv(tiny[1], sep="\t"))
    assert len(list(out.glob("predictions/*/*.parquet"))) == 6
    assert not list(out.glob("work/*"))


def test_a_subset_of_the_modalities_is_asked_of_the_fold_s_network_by_presence_masks(ran, tiny, tmp_path):
    """The slow way: train fold 1 again and ask with what is not in the subset taken out of the cases."""
    cohort, plan = tiny
    fold = planned(cohort, plan).folds[1]
    patients = Cohort.read(cohort.ingest, cohort.features)
    outcome = known_values(patients.frame, "poor_outcome")
    validation = validation_of(fold.train, outcome, PARAMS.seed)
    split = {patient: "validation" if patient in validation else "train" for patient in fold.train}
    split |= dict.fromkeys(fold.test, "test")
    network = train_fold(cohort.ingest, cohort.features, split, tmp_path, tmp_path / "embeddings", PARAMS)
    rows = patients.frame[patients.frame["patient_id"].isin(fold.test)].reset_index(drop=True)
    cases = [replace(case, volume=None, planes=None, facts=None) for case in patients.patients(rows).cases]
    expected = network.probabilities(network.encode(cases))
    kept = pd.read_parquet(next(ran[0].glob("predictions/willis-*/r0-f1.parquet")))
    assert kept["text and table"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert not np.allclose(kept["text and table"], kept["p"], atol=1e-4)


def test_a_run_that_was_killed_goes_on_with_what_is_missing(ran, tiny):
    out, found = ran
    cohort, plan = tiny
    paths = sorted(out.glob("predictions/*/*.parquet"))
    lost = next(path for path in paths if path.parent.name.startswith("willis"))
    kept = {path: path.stat().st_mtime_ns for path in paths if path != lost}
    lost.unlink()
    again = evaluate_folds(cohort.ingest, cohort.features, planned(cohort, plan), out, PARAMS)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again == found


def test_outcomes_of_the_tested_fold_change_no_prediction(ran, tiny, tmp_path):
    """Turn over the outcomes of fold 1: what is predicted for fold 1 (trained on fold 0) stays."""
    cohort, plan = tiny
    table = pd.read_parquet(cohort.features / "training_table.parquet")
    rows = pd.read_csv(plan, sep="\t")
    turned = table["patient_id"].isin(rows.loc[rows["fold"] == 1, "participant_id"])
    table.loc[turned, "poor_outcome"] = 1 - table.loc[turned, "poor_outcome"]
    features = tmp_path / "features"
    features.mkdir()
    table.to_parquet(features / "training_table.parquet")
    evaluate_folds(cohort.ingest, features, planned(cohort, plan), tmp_path / "out", PARAMS)
    for model in ("willis", "boosting", "logistic"):
        before, after = (
            pd.read_parquet(next(folder.glob(f"predictions/{model}-*/r0-f1.parquet"))).set_index(
                "patient_id"
            )["p"]
            for folder in (ran[0], tmp_path / "out")
        )
        assert after.to_numpy() == pytest.approx(before.to_numpy(), abs=1e-6)


def test_table_baselines_reach_their_known_auc_on_real_patients(data_dir):
    """The README of the real data: whole table .735 as the mean over these folds; fold sd about .04."""
    table = pd.read_csv(data_dir / "soop" / "participants.tsv", sep="\t", na_values="n/a")
    rankin = pd.to_numeric(table["gs_rankin_6isdeath"], errors="coerce")
    frame = pd.DataFrame({"patient_id": table["participant_id"], "sex": table["sex"]})
    frame["age"] = pd.to_numeric(table["age"].astype(str).str.rstrip("+"), errors="coerce")
    for column in ("nihss", "bmi"):
        frame[column] = pd.to_numeric(table[column], errors="coerce")
    frame["prior_stroke"] = table["priorstroke"].astype(str)
    frame["poor_outcome"] = (rankin >= 3).astype(float).where(rankin.notna())
    plan = read_folds(data_dir / "soop" / "folds.tsv", "poor_outcome", frame, repeats=2)
    assert plan.absent == ()
    assert (len(plan.folds), len(plan.folds[0].test)) == (10, 100)
    areas = []
    for fold in plan.folds:
        train, test = (frame[frame["patient_id"].isin(part)] for part in (fold.train, fold.test))
        model = fit_baseline("logistic", "table", train, ("age", "sex", "nihss", "bmi", "prior_stroke"), 0)
        areas.append(auc(test["poor_outcome"], model.predict(test)))
    assert sum(areas) / len(areas) == pytest.approx(0.735, abs=0.02)


def test_a_fold_is_pre_trained_on_everybody_whom_it_does_not_test(tiny, tmp_path, monkeypatch):
    cohort, plan = tiny
    learned = []

    def spy(job, world):
        learned.append(({job.arrays.patient_ids[row] for row in job.rows("train")}, job.rows("validation")))
        return pretrain_encoder(job, world)

    monkeypatch.setattr("willis.evaluation.fold_training.pretrain_encoder", spy)
    pretrain = PretrainParams(method="brainmvp", epochs=1)
    out = tmp_path / "out"
    found = evaluate_folds(
        cohort.ingest, cohort.features, planned(cohort, plan), out, PARAMS, pretrain=pretrain
    )
    rows = pd.read_csv(plan, sep="\t")
    everybody = set(pd.read_parquet(cohort.ingest / "studies.parquet")["patient_id"])
    for (patients, validation), fold in zip(learned, (0, 1), strict=True):
        assert patients == everybody - set(rows.loc[rows["fold"] == fold, "participant_id"])
        assert len(patients) > (rows["fold"] != fold).sum(), "patients without an outcome teach as well"
        assert not len(validation)
    assert {model.name for model in found.models} == MODELS


def test_each_later_period_is_tested_by_networks_that_saw_the_earlier_ones_alone(tiny, tmp_path):
    cohort, _ = tiny
    frame = Cohort.read(cohort.ingest, cohort.features).frame
    found = evaluate_folds(cohort.ingest, cohort.features, folds_by("period", frame), tmp_path, PARAMS)
    sizes = [(fold.num_training, fold.num_tested) for fold in found.folds]
    assert [trained for trained, _ in sizes] == [sum(n for _, n in sizes[:k]) + sizes[0][0] for k in range(4)]
    for fold in found.folds:
        assert {model.name for model in fold.models} == MODELS


def test_a_learning_curve_tests_the_same_patients_after_ever_more(tiny, tmp_path):
    cohort, _ = tiny
    found = learning_curve(cohort.ingest, cohort.features, [40, 20], 2, tmp_path, PARAMS)
    assert [point.num_labels for point in found.points] == [20, 40]
    table = pd.read_parquet(cohort.features / "training_table.parquet")
    num_tested = int((table["poor_outcome"].notna() & (table["split"] == "test")).sum())
    for point in found.points:
        sizes = {(fold.num_training, fold.num_tested) for fold in point.result.folds}
        assert sizes == {(point.num_labels, num_tested)}
    assert Image.open(tmp_path / "learning_curve.png").info["Description"].startswith("Learning curve, ")
    written = (tmp_path / "learning_curve.json").read_text()
    assert LearningCurve.model_validate_json(written) == found
    with pytest.raises(ParamsError, match="two numbers of patients or more"):
        learning_curve(cohort.ingest, cohort.features, [40], 2, tmp_path, PARAMS)


def test_nihss_is_learned_from_the_training_patients_of_a_fold_alone(tiny, tmp_path):
    """Other NIHSS of fold 1, scored: what is predicted for fold 1 (trained on fold 0) stays."""
    cohort, path = tiny
    frame = Cohort.read(cohort.ingest, cohort.features).frame
    rows = pd.read_csv(path, sep="\t").assign(task="nihss")
    rows = rows[rows["participant_id"].isin(frame.loc[frame["nihss"].notna(), "patient_id"])]
    rows.to_csv(tmp_path / "folds.tsv", sep="\t", index=False)
    plan = read_folds(tmp_path / "folds.tsv", "nihss", frame)
    found = evaluate_severity(cohort.ingest, cohort.features, plan, tmp_path / "out", PARAMS)
    assert {model.name for model in found.models} == {"willis", "support vectors", "boosting"}
    assert found.num_patients == len(rows)
    table = pd.read_parquet(cohort.features / "training_table.parquet")
    turned = table["patient_id"].isin(plan.folds[1].test)
    table.loc[turned, "nihss"] = table.loc[turned, "nihss"].to_numpy()[::-1]
    changed = tmp_path / "features"
    changed.mkdir()
    table.to_parquet(changed / "training_table.parquet")
    evaluate_severity(cohort.ingest, changed, plan, tmp_path / "again", PARAMS)
    for model in ("willis", "support_vectors", "boosting"):
        before, after = (
            np.load(next((tmp_path / name).glob(f"predictions/{model}-*/r0-f1.npy")))
            for name in ("out", "again")
        )
        assert after == pytest.approx(before, abs=1e-5)
