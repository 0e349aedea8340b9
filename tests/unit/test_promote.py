"""The step `promote` on small networks: what a bundle holds, when the alias moves, and when it must not."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from tests.fixtures.arrays import SEQUENCES, SHAPE, TinyCohort
from tests.networks import network_with_opinions
from willis.errors import InputError, StepError, StoreError
from willis.inference import Predictor, cases_from
from willis.models.decision import Calibration
from willis.models.network import NetworkConfig
from willis.models.preprocessing import PREPROCESSING, Preprocessing
from willis.models.table import FeatureColumn
from willis.params import IngestParams, PromoteParams
from willis.pseudonym import pseudonym
from willis.settings import Settings
from willis.steps.promote import PROMOTION, Promotion, promote
from willis.stores.registry import Registry

GATE = PromoteParams(min_auc=0.6, max_ece=1.0, max_auc_loss=0.02, min_compared=10)
KEY = "test key"


@dataclass(frozen=True)
class Made:
    """Output folders of the steps before `promote`."""

    root: Path
    version: Path
    ingest: Path
    features: Path
    model: Path
    evaluation: Path
    place: Settings

    def promote(self, name: str = "promotion", gate: PromoteParams = GATE, **changes: Path) -> Promotion:
        folders = ("version", "ingest", "features", "model", "evaluation")
        paths = {name: changes.get(name, getattr(self, name)) for name in folders}
        return promote(**paths, out=self.root / name, params=gate, settings=self.place)

    @property
    def registry(self) -> Registry:
        return Registry.open(self.place)


def write_model(folder: Path, seed: int, sequences: tuple[str, ...] = SEQUENCES) -> Path:
    """A network of the table alone, never trained."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    config = NetworkConfig(
        sequences=sequences,
        shape=SHAPE,
        table_columns=(FeatureColumn(name="age", mean=70, sd=12), FeatureColumn(name="nihss", mean=7, sd=4)),
        text_encoder="all-MiniLM-L6-v2",
        use_modalities=("table",),
        width=16,
        contrast_width=8,
    )
    save_file(network_with_opinions(config).state_dict(), folder / "model.safetensors")
    (folder / "contract.json").write_text(config.model_dump_json())
    trained = {"num_workers": 2, "epochs": 3, "git_revision": "f" * 40, "git_dirty": True}
    (folder / "train.json").write_text(json.dumps(trained))
    return folder


def probabilities(model: Path, ingest: Path, features: Path) -> dict[str, float]:
    predictor = Predictor.from_model_dir(model, None)
    return {p.case_id: p.probability for p in predictor.predict(list(cases_from(ingest, features, "test")))}


def write_evaluation(folder: Path, patients: list[str], poor: np.ndarray, p: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    rows = {"patient_id": patients, "split": "test", "poor_outcome": poor.astype(float), "p": p}
    pd.DataFrame(rows).to_parquet(folder / "predictions.parquet")
    (folder / "calibration.json").write_text(Calibration().model_dump_json())
    (folder / "evaluation.json").write_text(json.dumps({"auc": 0.8, "seed": folder.name}))
    (folder / "model_card.md").write_text("# A small model\n")
    return folder


@pytest.fixture
def made(tiny_ingest: TinyCohort, tmp_path: Path) -> Made:
    """A candidate that ranks its test patients perfectly; who is poor follows its own network."""
    version = tmp_path / "version"
    version.mkdir()
    stated = {"md5": "abc.dir", "size_bytes": 7, "num_files": 3, "git_revision": "0" * 40, "git_dirty": False}
    (version / "version.json").write_text(json.dumps(stated | {"remote": "here", "pushed": True}))
    model = write_model(tmp_path / "model", seed=0)
    p = probabilities(model, tiny_ingest.ingest, tiny_ingest.features)
    values = np.array(list(p.values()))
    poor = values > np.median(values)
    evaluation = write_evaluation(tmp_path / "evaluation", list(p), poor, values)
    place = Settings(registry=str(tmp_path / "registry"), bundle_cache=tmp_path / "cache", pseudonym_key=KEY)
    return Made(tmp_path, version, tiny_ingest.ingest, tiny_ingest.features, model, evaluation, place)


def rival(made: Made, p: np.ndarray, name: str = "rival") -> Path:
    """An evaluation of another candidate on the same patients and outcomes."""
    rows = pd.read_parquet(made.evaluation / "predictions.parquet")
    return write_evaluation(made.root / name, list(rows["patient_id"]), rows["poor_outcome"].to_numpy(), p)


def outcomes(made: Made) -> np.ndarray:
    return pd.read_parquet(made.evaluation / "predictions.parquet")["poor_outcome"].to_numpy()


def with_splits(made: Made, split: str) -> Path:
    """The same ingest, had its test patients been in another split."""
    folder = made.root / f"ingest-{split}"
    shutil.copytree(made.ingest, folder)
    splits = pd.read_parquet(folder / "splits.parquet")
    splits.loc[splits["split"] == "test", "split"] = split
    splits.to_parquet(folder / "splits.parquet")
    return folder


def test_the_first_candidate_that_holds_the_gate_becomes_champion(made: Made) -> None:
    found = made.promote()
    assert found.moved
    assert made.registry.alias("champion").version == found.version
    written = (made.root / "promotion" / PROMOTION).read_text()
    assert Promotion.model_validate_json(written) == found


def test_a_bundle_says_where_it_came_from(made: Made) -> None:
    lineage = made.registry.fetch(made.promote().version).manifest.lineage
    assert (lineage.cohort_md5, lineage.git_revision, lineage.git_dirty) == ("abc.dir", "f" * 40, True)
    assert json.loads(lineage.training) == {"num_workers": 2, "epochs": 3}


def test_a_bundle_predicts_as_the_model_it_was_made_from(made: Made) -> None:
    predictor = Predictor.from_bundle(made.registry.fetch(made.promote().version).folder)
    cases = list(cases_from(made.ingest, made.features, "test"))[:5]
    expected = probabilities(made.model, made.ingest, made.features)
    for found in predictor.predict(cases):
        assert found.probability == pytest.approx(expected[found.case_id], abs=1e-7)


def test_the_reference_is_the_validation_split_under_pseudonyms(made: Made) -> None:
    reference = made.registry.fetch(made.promote().version).reference()
    table = pd.read_parquet(made.features / "training_table.parquet")
    validation = table[table["split"] == "validation"].set_index("patient_id")
    assert set(reference["patient"]) == {pseudonym(patient, KEY) for patient in validation.index}
    for patient, age in validation["age"].items():
        row = reference[reference["patient"] == pseudonym(str(patient), KEY)].iloc[0]
        assert row["age"] == age
    assert {"p", "has_table", "f_volume_ml", "r_laterality", "embedding_000"} <= set(reference.columns)
    assert not {"patient_id", "study_id", "text", "poor_outcome", "site"} & set(reference.columns)


def test_no_patient_id_stands_anywhere_in_a_bundle(made: Made) -> None:
    folder = made.registry.fetch(made.promote().version).folder
    assert not [path.name for path in folder.iterdir() if b"sub-0" in path.read_bytes()]


def test_a_candidate_below_the_fixed_limit_is_stored_and_not_promoted(made: Made) -> None:
    found = made.promote(evaluation=rival(made, 1 - outcomes(made) * 0.9))
    assert not found.moved
    assert "min_auc: 0.000 against 0.600, fails" in found.reason
    assert made.registry.alias("champion").version is None
    assert made.registry.versions() == (found.version,)


def test_a_candidate_worse_than_the_champion_on_the_same_patients_is_refused(made: Made) -> None:
    champion = made.promote()
    p = np.where(np.arange(len(outcomes(made))) % 4 == 0, 0.5, outcomes(made) * 0.5 + 0.25)
    found = made.promote("second", evaluation=rival(made, p))
    assert not found.moved
    check = next(check for check in found.checks if check.rule == "max_auc_loss")
    assert check.value == pytest.approx(roc_auc_score(outcomes(made), p))
    assert check.limit == pytest.approx(1.0 - GATE.max_auc_loss)
    assert found.num_compared == len(p)
    assert made.registry.alias("champion").version == champion.version


def test_a_candidate_as_good_as_the_champion_takes_its_place(made: Made) -> None:
    champion = made.promote()
    found = made.promote("second", evaluation=rival(made, outcomes(made) * 0.5 + 0.25))
    assert (found.moved, found.champion) == (True, champion.version)
    assert made.registry.alias("champion").previous == champion.version


def test_patients_whom_the_champion_learned_from_are_left_out(made: Made) -> None:
    folder = made.root / "ingest-some"
    shutil.copytree(made.ingest, folder)
    splits = pd.read_parquet(folder / "splits.parquet")
    learned = splits.index[splits["split"] == "test"][:6]
    splits.loc[learned, "split"] = "train"
    splits.to_parquet(folder / "splits.parquet")
    rest = set(splits["patient_id"]) - set(splits.loc[learned, "patient_id"])
    rows = pd.read_parquet(made.evaluation / "predictions.parquet")
    rows = rows[rows["patient_id"].isin(rest)]
    seen = write_evaluation(
        made.root / "seen", list(rows["patient_id"]), rows["poor_outcome"].to_numpy(), rows["p"].to_numpy()
    )
    assert made.promote(ingest=folder, evaluation=seen).moved
    found = made.promote("second", evaluation=rival(made, outcomes(made) * 0.5 + 0.25))
    assert (found.num_left_out, found.num_compared) == (6, len(outcomes(made)) - 6)
    assert found.moved


@pytest.mark.parametrize("split", ["train", "validation", "calibration"])
def test_a_champion_that_learned_from_every_test_patient_cannot_be_compared(made: Made, split: str) -> None:
    empty = made.root / "elsewhere"
    patients = pd.read_parquet(made.ingest / "splits.parquet")["patient_id"]
    names = [f"sub-9{k:03d}" for k in range(20)]
    assert not set(names) & set(patients)
    poor = np.arange(20) % 2
    write_evaluation(empty, names, poor, poor * 0.5 + 0.2)
    assert made.promote(ingest=with_splits(made, split), evaluation=empty).moved
    found = made.promote("second")
    assert not found.moved
    assert "min_compared: 0.000 against 10.000, fails" in found.reason


def test_a_test_patient_whom_the_candidate_itself_learned_from_is_an_error(made: Made) -> None:
    with pytest.raises(StepError, match="were learned from"):
        made.promote(ingest=with_splits(made, "train"))
    assert made.registry.alias("champion").version is None


def test_another_key_makes_the_champion_incomparable(made: Made) -> None:
    champion = made.promote()
    place = made.place.model_copy(update={"pseudonym_key": Settings(pseudonym_key="other").pseudonym_key})
    found = replace(made, place=place).promote("second")
    assert not found.moved
    assert "another WILLIS_PSEUDONYM_KEY" in found.reason
    assert made.registry.alias("champion").version == champion.version


def test_a_champion_of_other_sequences_is_not_compared(made: Made) -> None:
    champion = made.promote()
    other = write_model(made.root / "other", seed=1, sequences=("dwi", "adc", "lesion"))
    found = made.promote("second", model=other)
    assert not found.moved
    assert "reads dwi, adc, flair, the candidate dwi, adc, lesion" in found.reason
    assert made.registry.alias("champion").version == champion.version


def test_a_bundle_carries_the_preprocessing_of_its_ingest(made: Made) -> None:
    found = made.registry.fetch(made.promote().version).preprocessing()
    assert found == Preprocessing.of(IngestParams(sequences=SEQUENCES, shape=SHAPE), None)


@pytest.mark.parametrize(
    ("outcome", "said"), [("mrs_90d", "(mRS 3-6) at 90 days"), ("mrs", "not known to be 90 days")]
)
def test_a_bundle_is_meant_for_the_outcome_of_its_cohort(made: Made, outcome: str, said: str) -> None:
    folder = made.root / "ingest-outcome"
    shutil.copytree(made.ingest, folder)
    summary = json.loads((folder / "ingest.json").read_text())
    (folder / "ingest.json").write_text(json.dumps(summary | {"outcome": outcome}))
    manifest = made.registry.fetch(made.promote(ingest=folder).version).manifest
    assert manifest.outcome == outcome
    assert said in manifest.intended_use


def test_a_champion_of_another_preprocessing_is_not_compared(made: Made) -> None:
    champion = made.promote()
    folder = made.root / "ingest-other"
    shutil.copytree(made.ingest, folder)
    path = folder / PREPROCESSING
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adc_below_mm2_s": 500e-6}))
    found = made.promote("second", ingest=folder)
    assert not found.moved
    assert "another preprocessing (adc_below_mm2_s)" in found.reason
    assert made.registry.alias("champion").version == champion.version


def test_a_champion_that_cannot_be_read_is_told_and_stays(made: Made) -> None:
    champion = made.promote()
    (made.root / "registry" / "bundles" / champion.version / "calibration.json").write_text("{}")
    found = made.promote("second", evaluation=rival(made, outcomes(made) * 0.5 + 0.25))
    assert not found.moved
    assert f"champion {champion.version} cannot be read" in found.reason
    assert made.registry.alias("champion").version == champion.version


def test_the_same_candidate_again_is_champion_already(made: Made) -> None:
    version = made.promote().version
    found = made.promote("second")
    assert (found.version, found.moved) == (version, False)
    assert "already" in found.reason


def test_the_slower_of_two_promoters_loses_and_says_so(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster one moves the alias after the slower one has looked at it."""
    publish = Registry.publish

    def overtaken(self: Registry, bundle: object) -> None:
        publish(self, bundle)  # type: ignore[arg-type]
        monkeypatch.setattr(Registry, "publish", publish)
        faster = made.promote("faster", evaluation=rival(made, outcomes(made) * 0.5 + 0.25))
        assert faster.moved

    monkeypatch.setattr(Registry, "publish", overtaken)
    slower = made.promote("slower")
    assert not slower.moved
    winner = Promotion.model_validate_json((made.root / "faster" / PROMOTION).read_text()).version
    assert f"moved champion to {winner} meanwhile" in slower.reason
    assert made.registry.alias("champion").version == winner


def test_a_crash_before_the_alias_moves_leaves_the_champion(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = made.promote()

    def dies(self: Registry, seen: object, version: str) -> bool:
        raise StoreError("the connection was lost")

    with monkeypatch.context() as patched, pytest.raises(StoreError):
        patched.setattr(Registry, "move", dies)
        made.promote("second", evaluation=rival(made, outcomes(made) * 0.5 + 0.25))
    assert made.registry.alias("champion").version == champion.version
    assert not (made.root / "second").exists()
    assert made.promote("second", evaluation=made.root / "rival").moved


def test_a_missing_output_of_an_earlier_step_is_named(made: Made) -> None:
    (made.version / "version.json").unlink()
    with pytest.raises(InputError, match=r"version\.json cannot be read"):
        made.promote()
    assert not (made.root / "promotion").exists()
