"""Cases to predictions: absence, attribution, saliency, damage, and one road for table rows and requests."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.networks import network_with_opinions
from willis.cohort.schema import ClinicalRow
from willis.errors import BundleError, ShapeError
from willis.imaging.lesion import Facts, Load
from willis.imaging.shards import decode
from willis.inference import BATCH_SIZE, Case, Predictor, case_of_row, cases_from
from willis.models.decision import Calibration, logit, sigmoid
from willis.models.network import NetworkConfig
from willis.models.table import FeatureColumn
from willis.models.text import PACKAGED, TextEncoder
from willis.params import TrainParams
from willis.steps.train import make_job
from willis.training.dataset import Share, collate

SHAPE = (12, 12, 8)
PREVALENCE = 0.35
CONFIG = NetworkConfig(
    sequences=("dwi", "adc"),
    shape=SHAPE,
    fact_columns=(
        FeatureColumn(name="f_volume_ml", log=True, mean=1.5, sd=1.0),
        FeatureColumn(name="f_laterality", level="left"),
        FeatureColumn(name="f_load_mca", log=True),
    ),
    table_columns=(
        FeatureColumn(name="age", mean=70, sd=13),
        FeatureColumn(name="nihss", mean=8, sd=6),
        FeatureColumn(name="sex", level="F", mean=0.5, sd=0.5),
        FeatureColumn(name="diabetes", mean=0.2, sd=0.4),
    ),
    text_encoder=PACKAGED,
    width=16,
    contrast_width=8,
    prevalence=PREVALENCE,
)


def network_of(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return network_with_opinions(config)


@pytest.fixture(scope="module", params=["vdafm_pooled", "vdafm_token", "late"])
def model_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = CONFIG.model_copy(update={"fusion": request.param})
    (folder / "contract.json").write_text(config.model_dump_json())
    save_file(network_of(config).state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def predictor(model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "calibration.json"
    path.write_text(Calibration(temperature=1.5, threshold=0.4, conformal_quantile=0.6).model_dump_json())
    return Predictor.from_model_dir(model_dir, path, text_cache=tmp_path_factory.mktemp("texts"))


def a_case(seed=0, **changes):
    codes = np.random.default_rng(seed).integers(1, 255, (2, *SHAPE)).astype(np.uint8)
    codes[:, :3] = 0
    case = Case(
        case_id=f"sub-{seed}",
        volume=codes,
        sequence_present=np.array([True, True]),
        planes=None,
        facts=Facts(infarct_present=True, volume_ml=6.0 + seed, laterality="left", loads=(_load(2.0),)),
        table=ClinicalRow(age=70 + seed, nihss=9, sex="F"),
        text="Acute infarct in the left middle cerebral artery territory.",
    )
    return replace(case, **changes)


def _load(volume_ml):
    return Load(region="mca", volume_ml=volume_ml)


def test_the_attribution_adds_up_to_the_distance_from_the_prevalence(predictor):
    for p in predictor.predict([a_case(k) for k in range(3)]):
        assert sum(p.attribution.values()) == pytest.approx(p.probability - PREVALENCE, abs=1e-9)
        assert set(p.attribution) == {"image", "text", "table"}


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({}, ("image", "text", "table")),
        ({"text": None}, ("image", "table")),
        ({"text": "  "}, ("image", "table")),
        ({"table": None}, ("image", "text")),
        ({"table": ClinicalRow()}, ("image", "text")),
        ({"volume": None}, ("text", "table")),
        ({"sequence_present": np.array([False, False])}, ("text", "table")),
        ({"volume": None, "text": None}, ("table",)),
    ],
)
def test_modalities_used_are_those_that_the_case_has(predictor, changes, used):
    p = predictor.predict([a_case(**changes)])[0]
    assert p.modalities_used == used
    assert set(p.attribution) == set(used)
    assert sum(p.attribution.values()) == pytest.approx(p.probability - PREVALENCE, abs=1e-9)


def test_a_case_of_which_nothing_is_known_gets_the_training_prevalence(predictor):
    p = predictor.predict([a_case(volume=None, text=None, table=None)])[0]
    assert (p.probability, p.probability_raw, p.attribution) == (PREVALENCE, PREVALENCE, {})
    assert p.modalities_used == ()


def test_facts_vanish_with_the_image(predictor):
    without = a_case(volume=None)
    # one at a time: two rows of one batch may be rounded differently
    (plain,) = predictor.predict([without])
    (wild,) = predictor.predict([replace(without, facts=Facts(volume_ml=300.0))])
    assert plain.probability == wild.probability


def test_facts_and_text_and_table_each_move_the_answer(predictor):
    cases = [
        a_case(), a_case(facts=Facts(volume_ml=90.0)), a_case(text="No infarct."),
        a_case(table=ClinicalRow(age=40, nihss=2)),
    ]  # fmt: skip
    assert len({p.probability for p in predictor.predict(cases)}) == 4


def test_cases_of_all_patterns_in_one_batch_answer_as_each_alone(predictor):
    cases = [
        a_case(1), a_case(2, text=None), a_case(3, table=None), a_case(4, volume=None),
        a_case(5, sequence_present=np.array([True, False])),
    ]  # fmt: skip
    together = predictor.predict(cases)
    for case, found in zip(cases, together, strict=True):
        alone = predictor.predict([case])[0]
        assert found.case_id == case.case_id
        assert found.probability == pytest.approx(alone.probability, abs=1e-6)
        assert found.embedding == pytest.approx(alone.embedding, abs=1e-5)


def test_threads_share_one_predictor(predictor):
    cases = [a_case(k) for k in range(6)]
    expected = [predictor.predict([case])[0].probability for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: predictor.predict([case])[0].probability, cases * 3))
    assert found == expected * 3


def test_a_row_of_the_feature_table_and_a_request_give_identical_numbers(predictor):
    case = a_case(facts=Facts(infarct_present=True, volume_ml=6.5, num_lesions=2, loads=(_load(None),)))

    class Arrays:
        sequence_present = np.array([[True, True]])
        planes_present = np.array([False])

        def volume(self, index):
            return case.volume

    row = {f"f_{name}": value for name, value in case.facts.to_row().items()}
    row |= {"f_num_lesions": 2.0, "f_load_mca": float("nan"), "f_dwi_ratio": float("nan")}
    row |= {"patient_id": "sub-0", "text": case.text, "has_text": True, "has_table": True}
    row |= {"age": 70.0, "nihss": 9.0, "sex": "F", "bmi": float("nan"), "diabetes": float("nan")}
    stored, requested = predictor.predict([case_of_row(row, Arrays(), 0)])[0], predictor.predict([case])[0]
    assert stored.probability == requested.probability
    assert stored.attribution == requested.attribution
    assert (stored.embedding == requested.embedding).all()


def test_serving_reads_the_tokens_that_training_read(tiny_ingest, tmp_path):
    params = TrainParams(fusion="vdafm_token", width=16, contrast_width=8)
    job = make_job(tiny_ingest.ingest, tiny_ingest.features, tmp_path, params)
    predictor = Predictor(network_of(job.config), Calibration(), TextEncoder.load(PACKAGED))
    rows = np.arange(12)
    trained = collate(job.cases, Share(rows, np.ones(12, np.float32)), job.config)
    cases = list(cases_from(tiny_ingest.ingest, tiny_ingest.features))[:12]
    with torch.no_grad():
        expected = predictor.network(trained).logit.sigmoid().tolist()
    known = trained.modality_present.any(dim=1)
    found = [p.probability_raw for p in predictor.predict(cases)]
    assert torch.tensor(found)[known] == pytest.approx(torch.tensor(expected)[known], abs=1e-5)


def test_a_row_without_table_or_text_is_a_case_without_them(predictor):
    class Arrays:
        sequence_present = np.array([[True, True]])
        planes_present = np.array([False])

        def volume(self, index):
            return a_case().volume

    row = {"patient_id": "a", "age": float("nan"), "text": None, "has_text": False, "has_table": False}
    assert case_of_row(row, Arrays(), 0).present() == (True, False, False)


def test_the_temperature_divides_the_log_odds(predictor):
    p = predictor.predict([a_case()])[0]
    assert p.probability == pytest.approx(float(sigmoid(logit(p.probability_raw) / 1.5)), abs=1e-9)


def test_the_prediction_set_keeps_the_conformal_quantile(predictor):
    certain = predictor.recalibrated(Calibration(conformal_quantile=0.0)).predict([a_case()])[0]
    unsure = predictor.recalibrated(Calibration(conformal_quantile=1.0)).predict([a_case()])[0]
    assert (certain.prediction_set, unsure.prediction_set) == ((), ("good", "poor"))


def test_subset_probabilities_are_those_of_cases_that_lack_the_rest(predictor):
    p = predictor.predict([a_case()])[0]
    image_only = predictor.predict([a_case(text=None, table=None)])[0]
    assert p.by_subset[frozenset({"image"})] == pytest.approx(image_only.probability, abs=1e-6)
    encodings = predictor.encode([a_case()])
    assert predictor.probabilities(encodings, ["image"])[0] == pytest.approx(image_only.probability, abs=1e-6)


def test_a_subset_that_a_case_has_nothing_of_is_worth_the_prevalence(predictor):
    encodings = predictor.encode([a_case(text=None), a_case()])
    found = predictor.probabilities(encodings, ["text"])
    assert found[0] == PREVALENCE
    assert found[1] != PREVALENCE


def test_other_texts_answer_as_cases_with_those_texts(predictor):
    encodings = predictor.with_texts(predictor.encode([a_case(1), a_case(2)]), ["Normal study.", None])
    expected = predictor.predict([a_case(1, text="Normal study."), a_case(2, text=None)])
    assert predictor.probabilities(encodings) == pytest.approx([p.probability for p in expected], abs=1e-6)


def test_the_report_of_another_case_answers_as_that_report(predictor):
    cases = [a_case(1), a_case(2, text="Normal study, no acute infarct."), a_case(3, text=None)]
    found = predictor.probabilities(predictor.with_text_of(predictor.encode(cases), [1, 2, 0]))
    swapped = [replace(cases[k], text=cases[of].text) for k, of in enumerate([1, 2, 0])]
    assert found == pytest.approx([p.probability for p in predictor.predict(swapped)], abs=1e-6)


def test_more_cases_than_are_fused_at_once_answer_in_their_order(predictor):
    cases = [a_case(k) for k in range(BATCH_SIZE + 2)]
    last = predictor.predict(cases)[-1]
    assert last.case_id == cases[-1].case_id
    assert last.probability == pytest.approx(predictor.predict(cases[-1:])[0].probability, abs=1e-6)


def test_a_hidden_column_answers_as_a_case_without_it(predictor):
    encodings = predictor.without_column(predictor.encode([a_case()]), "nihss")
    expected = predictor.predict([a_case(table=ClinicalRow(age=70, sex="F"))])[0].probability
    assert predictor.probabilities(encodings)[0] == pytest.approx(expected, abs=1e-6)


def test_saliency_is_finite_not_negative_and_inside_the_brain(predictor):
    found = predictor.saliency(a_case())
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found[:3].max() == 0  # a_case has no brain there
    assert found.max() > 0
    assert (found == predictor.saliency(a_case())).all()


def test_saliency_is_highest_where_the_answer_hangs(predictor):
    """A network whose logit is the mean of one block of the DWI: the block lights up and nothing else."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.image, self.text = CONFIG, True, None

        def forward(self, batch):
            block = batch.volume[:, 0, 6:10, 2:6, 2:5]
            return type("Said", (), {"logit": block.mean(dim=(1, 2, 3))})

    found = Predictor(Block(), Calibration(), TextEncoder.load(PACKAGED)).saliency(a_case())
    inside = np.zeros(SHAPE, bool)
    inside[6:10, 2:6, 2:5] = True
    assert found[inside].mean() > 5 * found[~inside].mean()
    assert found[:4].max() == 0


def test_saliency_of_a_case_without_volume_is_refused(predictor):
    with pytest.raises(ShapeError, match="'sub-0' has no volume"):
        predictor.saliency(a_case(volume=None))


def test_saliency_ignores_a_sequence_that_is_marked_absent(predictor):
    one = a_case(sequence_present=np.array([True, False]))
    other = one.volume.copy()
    other[1] = 200
    assert (predictor.saliency(one) == predictor.saliency(replace(one, volume=other))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volume": np.zeros((2, 12, 12, 9), np.uint8)}, r"uint8 \(2, 12, 12, 9\); this model reads uint8"),
        ({"volume": np.zeros((2, *SHAPE), np.float32)}, "float32"),
        ({"volume": np.zeros((3, *SHAPE), np.uint8)}, r"\(3, 12, 12, 8\)"),
        ({"sequence_present": np.array([True])}, "sequence_present has shape"),
    ],
)
def test_a_volume_that_does_not_fit_is_refused_with_value_rule_and_place(predictor, changes, message):
    with pytest.raises(ShapeError, match=message) as caught:
        predictor.predict([a_case(7, **changes)])
    assert "sub-7" in str(caught.value)
    assert "contract.json" in str(caught.value)


def test_no_case_is_no_prediction(predictor):
    assert predictor.predict([]) == []
    assert predictor.probabilities(predictor.encode([])).shape == (0,)


def test_encodings_of_some_cases_are_those_cases(predictor):
    encodings = predictor.encode([a_case(1), a_case(2, text=None), a_case(3)])
    some = encodings.take([2, 1])
    assert some.case_ids == ("sub-3", "sub-2")
    assert predictor.probabilities(some) == pytest.approx(
        predictor.probabilities(encodings)[[2, 1]], abs=1e-6
    )


def test_a_network_of_two_modalities_never_uses_the_third():
    config = CONFIG.model_copy(update={"use_modalities": ("image", "table")})
    small = Predictor(network_of(config), Calibration(), TextEncoder.load(PACKAGED))
    p = small.predict([a_case()])[0]
    assert p.modalities_used == ("image", "table")


def test_weights_of_another_architecture_are_refused(model_dir, tmp_path):
    (tmp_path / "contract.json").write_text(CONFIG.model_copy(update={"width": 32}).model_dump_json())
    (tmp_path / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes())
    with pytest.raises(BundleError, match="does not fit contract.json"):
        Predictor.from_model_dir(tmp_path, None)


def test_damaged_and_missing_weights_are_refused(model_dir, tmp_path):
    with pytest.raises(BundleError, match="missing"):
        Predictor.from_model_dir(tmp_path, None)
    (tmp_path / "contract.json").write_bytes((model_dir / "contract.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes()[:500])
    with pytest.raises(BundleError, match="damaged"):
        Predictor.from_model_dir(tmp_path, None)


def test_codes_decode_to_zero_outside_the_brain():
    assert decode(a_case().volume, ("dwi", "adc"))[:, :3].max() == 0
