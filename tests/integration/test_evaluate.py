"""The step `evaluate` on a small trained network: what it writes, what it refuses, what it never reads."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from tests.fixtures.arrays import write_tiny_cohort
from tests.served import test_settings
from willis.errors import CohortError, LeakError, StepError
from willis.evaluation.results import Evaluation
from willis.forget import forget
from willis.inference import Predictor, cases_from
from willis.models.decision import sigmoid
from willis.params import EvaluateParams, PromoteParams, TrainParams
from willis.pseudonym import pseudonym
from willis.steps.evaluate import evaluate
from willis.steps.promote import promote
from willis.steps.train import make_job
from willis.stores.registry import Registry
from willis.training.loop import World, fit

PARAMS = EvaluateParams(num_bootstrap=300, num_permutations=3)


@dataclass(frozen=True)
class Circle:
    """Everything up to `train`, small."""

    cohort: Path
    ingest: Path
    features: Path
    model: Path

    def evaluate(self, out, **changes):
        folders = {name: getattr(self, name) for name in ("cohort", "ingest", "features", "model")}
        return evaluate(**{**folders, **changes}, out=out, params=PARAMS)

    @property
    def table(self):
        return pd.read_parquet(self.features / "training_table.parquet")


def write_truth(cohort, table, probability):
    """A synthetic cohort's truth, with what the outcome was drawn from."""
    folder = cohort / "derivatives" / "truth"
    folder.mkdir(parents=True)
    (cohort / "dataset_description.json").write_text(json.dumps({"Willis": {"source": "synthetic"}}))
    pd.DataFrame({"patient_id": table["patient_id"], "p_poor": probability}).to_parquet(
        folder / "truth.parquet"
    )
    (folder / "ceilings.json").write_text(json.dumps({"preset": "published", "full": 0.85}))


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    root = tmp_path_factory.mktemp("circle")
    tiny = write_tiny_cohort(root, num_patients=240, seed=5)
    model = root / "model"
    params = TrainParams(epochs=3, width=32, contrast_width=16, batch_size=32, num_workers=1)
    torch.manual_seed(0)
    job = make_job(tiny.ingest, tiny.features, model, params)
    state = fit(job, World())
    save_file(state.best, model / "model.safetensors")
    (model / "contract.json").write_text(job.config.model_dump_json())
    table = pd.read_parquet(tiny.features / "training_table.parquet")
    radius = np.cbrt(table["f_volume_ml"] / 0.02)
    cohort = root / "cohort"
    write_truth(cohort, table, sigmoid(1.2 * (radius - 3) + 0.08 * (table["age"] - 70)))
    return Circle(cohort, tiny.ingest, tiny.features, model)


@pytest.fixture(scope="module")
def evaluated(circle, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    return out, circle.evaluate(out)


def test_everything_is_written_and_reads_back(evaluated):
    out, found = evaluated
    names = {path.name for path in out.iterdir()}
    assert {
        "evaluation.json", "calibration.json", "predictions.parquet", "model_card.md", "roc.png",
        "reliability.png", "decision.png", "attribution.png", *found.saliency,
    } == names  # fmt: skip
    assert Evaluation.model_validate_json((out / "evaluation.json").read_text()) == found
    assert len(found.saliency) == 3


def test_the_headline_is_the_auc_of_the_predictions_that_were_written(evaluated):
    out, found = evaluated
    rows = pd.read_parquet(out / "predictions.parquet")
    test = rows[(rows["split"] == "test") & rows["poor_outcome"].notna()]
    assert found.num_patients == len(test)
    assert found.auc == pytest.approx(roc_auc_score(test["poor_outcome"], test["p"]), abs=1e-9)
    assert found.auc_low < found.auc < found.auc_high


def test_the_patient_behind_a_picture_is_told_beside_it_alone(evaluated, circle):
    out, found = evaluated
    assert found.saliency == ("saliency-1.png", "saliency-2.png", "saliency-3.png")
    rows = pd.read_parquet(out / "predictions.parquet").dropna(subset="picture")
    assert sorted(rows["picture"]) == list(found.saliency)
    assert set(rows["split"]) == {"test"}
    told = (out / "evaluation.json").read_text() + (out / "model_card.md").read_text()
    assert not [patient for patient in circle.table["patient_id"] if patient in told]


def promoted(evaluated, circle, root):
    """Promote what was evaluated, whatever it is worth; return the settings with its registry."""
    version = root / "version"
    version.mkdir()
    (version / "version.json").write_text(json.dumps({"md5": "abc.dir", "size_bytes": 7, "num_files": 3}))
    (circle.model / "train.json").write_text("{}")
    place = test_settings(root, report_store=root / "reports.sqlite")
    gate = PromoteParams(min_auc=0, max_ece=1, min_compared=10)
    folders = (version, circle.ingest, circle.features, circle.model, evaluated[0], root / "promotion")
    assert promote(*folders, gate, place).moved
    return place


def registry_text(place):
    """Everything in every file of the registry, tables unpacked as well."""
    files = sorted(path for path in Path(place.registry).rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"bundle.json", "evaluation.json", "champion.json"}
    tables = [pd.read_parquet(path).to_csv() for path in files if path.suffix == ".parquet"]
    return "\n".join([*(path.read_bytes().decode("latin-1") for path in files), *map(str, files), *tables])


def test_no_patient_of_the_cohort_stands_in_the_registry(evaluated, circle, tmp_path):
    published = registry_text(promoted(evaluated, circle, tmp_path))
    assert not [patient for patient in circle.table["patient_id"] if patient in published]


def test_a_forgotten_patient_leaves_no_trace_in_the_registry(evaluated, circle, tmp_path):
    place = promoted(evaluated, circle, tmp_path)
    drawn = pd.read_parquet(evaluated[0] / "predictions.parquet").dropna(subset="picture")["patient_id"]
    table = circle.table
    for patient in (*drawn, table.loc[table["split"] == "validation", "patient_id"].iloc[0]):
        name = pseudonym(patient, place.pseudonym_key.get_secret_value())
        assert name in registry_text(place)
        assert forget(patient, place).num_bundles == 1
        left = registry_text(place)
        assert name not in left
        assert patient not in left
    assert Registry.open(place).fetch("champion").manifest.amendments


def test_predictions_hold_no_training_patient(evaluated):
    rows = pd.read_parquet(evaluated[0] / "predictions.parquet")
    assert set(rows["split"]) == {"validation", "calibration", "test"}
    assert rows["patient_id"].is_unique


def test_shares_of_the_modalities_add_up_in_every_row(evaluated, circle):
    rows = pd.read_parquet(evaluated[0] / "predictions.parquet")
    shares = rows[["attribution_image", "attribution_text", "attribution_table"]].sum(axis=1)
    prevalence = evaluated[1].training_prevalence
    assert shares.to_numpy() == pytest.approx((rows["p"] - prevalence).to_numpy(), abs=1e-6)


def test_controls_baselines_and_scores_stand_beside_the_headline(evaluated):
    found = evaluated[1]
    assert {rival.name for rival in found.controls} == {
        "image only", "text only", "table only", "image and text", "image and table", "text and table",
        "image replaced by its facts", "image without its facts", "text permuted", "constant text",
    }  # fmt: skip
    assert {rival.name for rival in found.baselines} == {
        "logistic on table", "boosting on table", "logistic on facts", "boosting on facts",
        "logistic on table and facts", "boosting on table and facts",
        "boosting on table, facts and report embedding (HAIM)",
    }  # fmt: skip
    assert {rival.name for rival in found.scores} == {"ASTRAL", "THRIVE", "DRAGON"}
    for rival in (*found.controls, *found.baselines):
        assert rival.lead.low <= rival.lead.value <= rival.lead.high


def test_the_ceiling_is_the_auc_of_the_truth_on_the_same_patients(evaluated, circle):
    out, found = evaluated
    truth = pd.read_parquet(circle.cohort / "derivatives" / "truth" / "truth.parquet")
    rows = pd.read_parquet(out / "predictions.parquet").merge(truth, on="patient_id")
    rows = rows[(rows["split"] == "test") & rows["poor_outcome"].notna()]
    assert found.ceiling.auc.value == pytest.approx(roc_auc_score(rows["poor_outcome"], rows["p_poor"]))


def test_evaluation_and_serving_give_the_same_numbers(evaluated, circle):
    out, _ = evaluated
    predictor = Predictor.from_model_dir(circle.model, out / "calibration.json")
    cases = list(cases_from(circle.ingest, circle.features, "test"))
    rows = pd.read_parquet(out / "predictions.parquet").set_index("patient_id")
    alone = predictor.predict(cases[:1])[0]
    assert alone.probability == pytest.approx(rows.loc[alone.case_id, "p"], abs=1e-6)


def test_a_second_run_gives_the_same_numbers_and_replaces_the_folder_whole(evaluated, circle, tmp_path):
    (tmp_path / "again").mkdir()
    for name in ("evaluation.json", "stale.txt"):
        (tmp_path / "again" / name).write_text("of another run")
    again = circle.evaluate(tmp_path / "again")
    assert again.model_copy(update={"seconds": 0.0}) == evaluated[1].model_copy(update={"seconds": 0.0})
    assert not (tmp_path / "again" / "stale.txt").exists()


def test_nothing_that_is_fitted_hangs_on_test_patients(evaluated, circle, tmp_path):
    """Every outcome and clinical value of the test split is turned over; what was fitted stays."""
    table = circle.table
    of_test = table["split"] == "test"
    table.loc[of_test, "poor_outcome"] = 1 - table.loc[of_test, "poor_outcome"]
    table.loc[of_test, "age"] = 18.0
    table.loc[of_test, "f_volume_ml"] = 1e4
    features = tmp_path / "features"
    features.mkdir()
    table.to_parquet(features / "training_table.parquet")
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (cohort / "dataset_description.json").write_text('{"Willis": {"source": "bids"}}')
    changed = circle.evaluate(tmp_path / "out", features=features, cohort=cohort)
    before, after = (folder / "calibration.json" for folder in (evaluated[0], tmp_path / "out"))
    assert before.read_text() == after.read_text()
    assert changed.at_threshold.threshold == evaluated[1].at_threshold.threshold
    assert changed.auc != evaluated[1].auc


def test_a_real_cohort_has_no_ceiling_and_says_why(circle, tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Willis": {"source": "soop"}}')
    table = circle.table.drop(columns=["glucose_mmol_l", "visual_field_defect"])
    (tmp_path / "features").mkdir()
    table.to_parquet(tmp_path / "features" / "training_table.parquet")
    found = circle.evaluate(tmp_path / "out", cohort=tmp_path, features=tmp_path / "features")
    assert found.ceiling is None
    assert "'soop'" in found.ceiling_reason
    assert found.rival("ASTRAL").auc is None
    assert "glucose" in found.rival("ASTRAL").note
    assert found.decision.astral is None
    assert "No ceiling is known" in (tmp_path / "out" / "model_card.md").read_text()


def test_a_leak_fails_the_step_and_writes_nothing(circle, tmp_path):
    """The table knows the outcome, as if a column had been filled in afterwards."""
    table = circle.table
    table["prior_stroke"] = table["poor_outcome"].fillna(0)
    features = tmp_path / "features"
    features.mkdir()
    table.to_parquet(features / "training_table.parquet")
    with pytest.raises(LeakError, match="exceeds that of the true probability"):
        circle.evaluate(tmp_path / "out", features=features)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_test_split_of_one_class_is_refused(circle, tmp_path):
    table = circle.table
    table.loc[table["split"] == "test", "poor_outcome"] = 0.0
    (tmp_path / "features").mkdir()
    table.to_parquet(tmp_path / "features" / "training_table.parquet")
    with pytest.raises(CohortError, match=r"0 of \d+ outcomes are poor.*test split"):
        circle.evaluate(tmp_path / "out", features=tmp_path / "features")


def test_features_of_another_ingest_are_refused(circle, tmp_path):
    (tmp_path / "features").mkdir()
    circle.table.iloc[::-1].to_parquet(tmp_path / "features" / "training_table.parquet")
    with pytest.raises(StepError, match="run `willis featurize` again"):
        circle.evaluate(tmp_path / "out", features=tmp_path / "features")


def test_the_card_opens_with_the_notice_and_names_every_rival(evaluated):
    out, found = evaluated
    card = (out / "model_card.md").read_text()
    assert "For research only" in card[:120]
    for rival in (*found.controls, *found.baselines, *found.scores):
        assert f"| {rival.name} |" in card
