"""The embedded reader: what it is trained on, how it is asked, what it should write."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.file_limit import files_of_at_most
from willis.errors import StepError
from willis.imaging.lesion import Facts, Load
from willis.params import ReportParams
from willis.reports import reader_language
from willis.reports.grounding import ground
from willis.reports.kept_eyes import EyesRecord, KeptEyes
from willis.reports.prompt import prompt_parts
from willis.reports.reader_language import (
    EncodedStudy,
    Language,
    LanguageParams,
    corpus,
    invented_facts,
    mirror_facts,
)
from willis.reports.reader_model import (
    IMAGE,
    MEAN,
    PATCH_PX,
    SD,
    TOKENS_PER_PICTURE,
    WIDTH,
    new_reader,
    save_reader,
    train_tokenizer,
)
from willis.reports.reader_reports import report_json, target_report
from willis.reports.reader_studies import ACUTE, OLD, WHITE, ReaderStudies, make_reader_studies
from willis.reports.reader_training import (
    FULL_ML,
    EyesParams,
    Levels,
    patch_shares,
    region_volumes,
    shares_of_full,
)
from willis.reports.schema import parse_findings
from willis.reports.slices import PICTURE_PX, SHOWN, Picture
from willis.reports.train_reader import train_reader
from willis.reports.writer import Study

FULL = frozenset({"dwi", "adc", "flair"})
NUM_STUDIES = 6


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> ReaderStudies:
    folder = tmp_path_factory.mktemp("reader") / "studies"
    return make_reader_studies(folder, NUM_STUDIES, seed=3, without_infarct=0.3, num_workers=1)


def an_infarct(**changes: object) -> Facts:
    known = {
        "infarct_present": True, "volume_ml": 12.44, "num_lesions": 2, "laterality": "left",
        "territory": "mca", "adc_lesion_mm2_s": 523.4e-6, "flair_ratio": 1.4, "dwi_flair_mismatch": False,
    }  # fmt: skip
    return Facts.model_validate(known | changes)


# ---- studies ----


def test_the_facts_of_a_study_are_those_of_its_true_mask(studies: ReaderStudies) -> None:
    for truth, facts in zip(studies.truth, studies.facts, strict=True):
        voxels = int(((truth & ACUTE) != 0).sum())
        assert facts.volume_ml == pytest.approx(voxels * 0.016)  # 2 x 2 x 4 mm
        assert facts.infarct_present == (voxels > 0)


def test_every_infarct_is_dark_on_adc_and_bright_on_dwi(studies: ReaderStudies) -> None:
    for codes, truth in zip(studies.codes, studies.truth, strict=True):
        acute, brain = (truth & ACUTE) != 0, codes[0] > 0
        if acute.sum() > 30:
            assert codes[0][acute].mean() > codes[0][brain & ~acute].mean()
            assert codes[1][acute].mean() < codes[1][brain & ~acute].mean()


def test_rendered_studies_are_not_rendered_again(tmp_path: Path) -> None:
    first = make_reader_studies(tmp_path / "s", 1, seed=3, without_infarct=0.0, num_workers=1)
    stamp = (tmp_path / "s" / "codes.npy").stat().st_mtime_ns
    again = make_reader_studies(tmp_path / "s", 1, seed=3, without_infarct=0.0, num_workers=1)
    assert (tmp_path / "s" / "codes.npy").stat().st_mtime_ns == stamp
    assert np.array_equal(first.codes, again.codes)


# ---- targets of the eyes ----


def test_shares_of_a_patch_are_its_counted_pixels() -> None:
    truth = torch.from_numpy(np.random.default_rng(1).integers(0, 8, (2, PICTURE_PX, PICTURE_PX), np.uint8))
    shares = patch_shares(truth)
    side = PICTURE_PX // PATCH_PX
    for study, row, column in ((0, 0, 0), (1, 2, side - 1)):
        patch = truth[study, row * PATCH_PX :, column * PATCH_PX :][:PATCH_PX, :PATCH_PX].numpy()
        expected = [float(((patch & bit) > 0).mean()) for bit in (ACUTE, OLD, WHITE)]
        assert shares[study, row * side + column].tolist() == pytest.approx(expected)


def test_volumes_of_a_region_are_its_counted_pixels() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 8, (2, PICTURE_PX, PICTURE_PX)).astype(np.uint8)
    regions = rng.integers(0, 5, (2, PICTURE_PX, PICTURE_PX))
    volumes = region_volumes(torch.from_numpy(truth), torch.from_numpy(regions), 5)
    assert volumes.shape == (2, TOKENS_PER_PICTURE, 5)
    for study in range(2):
        for region in range(5):
            count = int((((truth[study] & ACUTE) > 0) & (regions[study] == region)).sum())
            assert float(volumes[study, :, region].sum()) == pytest.approx(count * 0.016, rel=1e-5)


def test_a_volume_fills_each_step_in_turn() -> None:
    assert FULL_ML == (0.1, 0.3, 1.0, 3.0, 10.0)
    found = shares_of_full(torch.tensor([0.0, 0.15, 6.0, 50.0]))
    expected = [[0, 0, 0, 0, 0], [1, 0.5, 0.15, 0.05, 0.015], [1, 1, 1, 1, 0.6], [1, 1, 1, 1, 1]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_regions_of_the_picture_lie_on_the_side_where_the_picture_shows_them(studies: ReaderStudies) -> None:
    levels = Levels(studies, torch.device("cpu"))
    for study, facts in enumerate(studies.facts):
        truth = torch.from_numpy(levels.truth[study])
        padded = torch.zeros(len(truth), PICTURE_PX, PICTURE_PX, dtype=torch.uint8)
        top, left = (PICTURE_PX - truth.shape[1]) // 2, (PICTURE_PX - truth.shape[2]) // 2
        padded[:, top : top + truth.shape[1], left : left + truth.shape[2]] = truth
        measured = region_volumes(padded, levels.regions, levels.num_regions).sum(dim=(0, 1))
        loads = [load.volume_ml for load in facts.loads]
        assert measured[:-1].tolist() == pytest.approx(loads, abs=0.02)


# ---- what it should write ----


def test_told_the_facts_a_report_repeats_them() -> None:
    report = target_report(an_infarct(), FULL, "no", told=True)
    assert report.num_lesions == 2
    assert "12.4 ml" in report.impression
    assert "523" in report.findings


def test_from_pictures_alone_no_number_is_stated() -> None:
    report = target_report(an_infarct(), FULL, "no", told=False)
    assert report.num_lesions is None
    assert not any(character.isdigit() for character in report.impression + report.findings)
    assert (report.laterality, report.territories, report.volume_band) == ("left", ("mca",), "10_to_70_ml")


def test_without_dwi_nothing_acute_is_claimed_from_pictures_alone() -> None:
    report = target_report(an_infarct(), frozenset({"flair"}), "no", told=False)
    assert report.acute_infarct == "unknown"
    assert report.dwi_quality == "absent"


@pytest.mark.parametrize(
    ("ratio", "stated"), [(1.05, "yes"), (1.13, "unknown"), (1.17, "unknown"), (1.3, "no")]
)
def test_a_mismatch_on_the_edge_of_its_definition_is_left_open(ratio: float, stated: str) -> None:
    facts = an_infarct(flair_ratio=ratio, dwi_flair_mismatch=ratio < 1.15)
    assert target_report(facts, FULL, "no", told=False).dwi_flair_mismatch == stated


def test_every_target_is_a_valid_report(studies: ReaderStudies) -> None:
    for facts in studies.facts:
        for told in (True, False):
            report = target_report(facts, FULL, "unknown", told)
            assert parse_findings(report_json(report)) == report


def test_mirrored_facts_swap_sides_and_nothing_else() -> None:
    loads = (Load(region="aca_left", volume_ml=1.0), Load(region="aca_right", volume_ml=2.0))
    facts = an_infarct(loads=loads)
    mirrored = mirror_facts(facts)
    assert mirrored.laterality == "right"
    assert {load.region: load.volume_ml for load in mirrored.loads} == {"aca_left": 2.0, "aca_right": 1.0}
    assert mirror_facts(mirrored) == facts


# ---- how it is asked ----


def test_numbers_are_read_digit_by_digit(studies: ReaderStudies) -> None:
    tokenizer = train_tokenizer(corpus(studies))
    tokens = tokenizer.encode('{"volume_ml":123.4}').tokens
    assert [token for token in tokens if token.isdigit()] == ["1", "2", "3", "4"]


def test_each_further_item_of_a_list_is_one_token_in_facts_and_report_alike(studies: ReaderStudies) -> None:
    tokenizer = train_tokenizer(corpus(studies) + ['"territories":["aca","pca"],"regions":["insula"]'])
    tokens = tokenizer.encode('"territories":["aca","pca"],"regions":["insula"]').tokens
    assert tokens == ['"territories":["', "aca", '","pca', '"],"regions":["', "insula", '"', "]"]


def test_reports_survive_the_tokenizer_to_the_letter(studies: ReaderStudies) -> None:
    tokenizer = train_tokenizer(corpus(studies))
    for text in corpus(studies)[:12]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("told", [True, False])
def test_the_prompt_of_training_is_the_prompt_of_the_server_to_the_letter(
    studies: ReaderStudies, tmp_path: Path, told: bool
) -> None:
    from transformers import AutoProcessor

    tokenizer = train_tokenizer(corpus(studies))
    model = new_reader(tokenizer)
    save_reader(tmp_path / "reader", model, tokenizer)
    study = Study(
        studies.codes[0], ("dwi", "adc", "flair"), (True, True, True), None, (2.0, 2.0, 4.0), an_infarct()
    )
    parts = list(prompt_parts(study, ReportParams(facts_in_prompt=told)))
    pictures = [part for part in parts if isinstance(part, Picture)]
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts
    ]
    processor = AutoProcessor.from_pretrained(tmp_path / "reader")
    chat = [{"role": "system", "content": []}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, tokenize=False)
    given = processor(
        text=text,
        images=[picture.pixels for picture in pictures],
        return_tensors="pt",
        add_special_tokens=False,
    )
    words = [part for part in parts if isinstance(part, str)]
    labels, rest = words[: len(pictures)], "".join(words[len(pictures) : -1])
    assert given["input_ids"][0].tolist() == Language(model, tokenizer).prompt(labels, rest)
    expected = (np.stack([p.pixels for p in pictures]).transpose(0, 3, 1, 2) / 255 - MEAN) / SD
    assert np.allclose(given["pixel_values"][0].numpy(), expected, atol=1e-6)


def test_pictures_of_training_are_the_pictures_of_use(studies: ReaderStudies) -> None:
    levels = Levels(studies, torch.device("cpu"))
    study = Study(
        studies.codes[1], ("dwi", "adc", "flair"), (True, True, True), None, (2.0, 2.0, 4.0), Facts()
    )
    parts = prompt_parts(study, ReportParams(facts_in_prompt=False, num_slices=64))
    shown = [part.pixels for part in parts if isinstance(part, Picture)]
    visible = np.flatnonzero(levels.visible[1])
    trained = levels.pixels(levels.codes[1, visible])
    expected = (np.stack(shown).transpose(0, 3, 1, 2) / 255 - MEAN) / SD
    assert np.abs(trained.numpy() - expected).max() < 1e-6


# ---- the whole of it ----


def a_view(rng: np.random.Generator) -> EncodedStudy:
    levels = np.arange(int(rng.integers(8, 30)))
    return EncodedStudy(
        tokens=torch.tensor(rng.normal(size=(len(levels), TOKENS_PER_PICTURE, WIDTH))).half(),
        volumes=torch.tensor(rng.exponential(size=3), dtype=torch.float32),
        levels=levels,
        restricted=np.zeros(len(levels), np.int64),
        seen=("dwi", "adc"),
        facts=an_infarct(),
        old_infarcts="no",
    )


def test_the_loss_of_a_batch_is_the_mean_over_its_tokens_however_it_is_grouped(
    studies: ReaderStudies,
) -> None:
    tokenizer, rng = train_tokenizer(corpus(studies)), np.random.default_rng(2)
    torch.manual_seed(0)
    language, head = Language(new_reader(tokenizer).eval(), tokenizer), torch.nn.Linear(WIDTH, 3)
    views = [a_view(rng) for _ in range(11)]
    samples = [language.sample(view, view, rng) for view in views]
    of_tokens, of_volumes = [], []
    for sample in samples:  # one by one, without padding
        ids = torch.tensor([sample.prompt + sample.report])
        embedded = language.embed(ids, sample.pictures.flatten(0, 1))
        hidden = language.model.model.text_model(inputs_embeds=embedded).last_hidden_state[0]
        chances = language.model.lm_head(hidden).log_softmax(dim=-1)
        start = len(sample.prompt)
        of_tokens += [-chances[start + n - 1, token] for n, token in enumerate(sample.report)]
        if sample.volumes is not None:
            wanted = torch.log(1 + 20 * sample.volumes)
            of_volumes += [(head(hidden[start - 1]) - wanted) ** 2]
    slow = torch.stack(of_tokens).mean() + reader_language.VOLUME_WEIGHT * torch.stack(of_volumes).mean()
    assert language.loss(samples, head).item() == pytest.approx(slow.item(), rel=1e-4)


def test_a_training_that_was_killed_goes_on_with_its_eyes_and_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, studies: str) -> bytes:
        train_reader(
            tmp_path / name, tmp_path / studies, num_studies=4, seed=5,
            eyes=EyesParams(steps=2, batch_size=8), language=LanguageParams(steps=2, batch_size=4),
        )  # fmt: skip
        return (tmp_path / name / "model.safetensors").read_bytes()

    undisturbed = trained("undisturbed", "studies")
    with monkeypatch.context() as killing:
        killing.setattr("willis.reports.train_reader.encode_studies", _killed)
        with pytest.raises(KeyboardInterrupt):
            trained("reader", "others")
    with monkeypatch.context() as blind:
        blind.setattr("willis.reports.train_reader.train_eyes", _killed)
        assert trained("reader", "others") == undisturbed


def _killed(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_eyes_of_other_parameters_or_damaged_ones_are_trained_anew(
    studies: ReaderStudies, tmp_path: Path
) -> None:
    model = new_reader(train_tokenizer(corpus(studies)))
    (tmp_path / "studies.json").write_text("{}")
    kept = KeptEyes.of(tmp_path, 5, EyesParams())
    assert kept.load(model) is None
    kept.save(model, EyesRecord(loss=0.5, seconds=2.0))
    assert kept.load(model) == EyesRecord(loss=0.5, seconds=2.0)
    assert KeptEyes.of(tmp_path, 6, EyesParams()).load(model) is None
    assert KeptEyes.of(tmp_path, 5, EyesParams(steps=9)).load(model) is None
    kept.path.write_bytes(kept.path.read_bytes()[:-9])
    assert kept.load(model) is None


def test_a_full_disk_at_the_eyes_is_said_and_leaves_the_ones_before(
    studies: ReaderStudies, tmp_path: Path
) -> None:
    model = new_reader(train_tokenizer(corpus(studies)))
    (tmp_path / "studies.json").write_text("{}")
    kept = KeptEyes.of(tmp_path, 5, EyesParams())
    kept.save(model, EyesRecord(loss=0.5, seconds=2.0))
    message = r"eyes\.safetensors cannot be written: .*free some space and run `willis reports train-reader`"
    with pytest.raises(StepError, match=message), files_of_at_most(20_000):
        kept.save(model, EyesRecord(loss=0.4, seconds=3.0))
    assert kept.load(model) == EyesRecord(loss=0.5, seconds=2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eyes.safetensors", "studies.json"]


def test_a_training_run_leaves_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoProcessor, Idefics3ForConditionalGeneration

    summary = train_reader(
        tmp_path / "reader", tmp_path / "studies", num_studies=4, seed=5,
        eyes=EyesParams(steps=2, batch_size=8), language=LanguageParams(steps=2, batch_size=4),
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration.from_pretrained(tmp_path / "reader")
    assert sum(p.numel() for p in model.parameters()) == summary.num_parameters
    assert summary.num_bytes <= 8_000_000
    assert AutoProcessor.from_pretrained(tmp_path / "reader").tokenizer.convert_tokens_to_ids(IMAGE) >= 0
    assert json.loads((tmp_path / "reader" / "training.json").read_text())["num_studies"] == 4
    assert "not for diagnosis" in (tmp_path / "reader" / "README.md").read_text()


# ---- what the language is taught ----


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_invented_facts_agree_with_themselves(seed: int) -> None:
    facts = invented_facts(np.random.default_rng(seed))
    report = target_report(facts, FULL, "no", told=True)
    found = ground(report, facts, FULL)
    assert (found.contradictions, found.num_omissions, found.num_self_contradictions) == ((), 0, 0)


def test_what_is_rare_in_studies_is_invented_often() -> None:
    rng = np.random.default_rng(3)
    invented = [invented_facts(rng) for _ in range(300)]
    assert sum((facts.volume_ml or 0) >= 100 for facts in invented) > 30
    assert sum(facts.territory == "multiple" for facts in invented) > 60
    assert sum(facts.laterality == "bilateral" for facts in invented) > 60


def test_single_planes_are_reported_as_flair_alone(
    studies: ReaderStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_language, "TOLD_SHARE", 1.0)
    monkeypatch.setattr(reader_language, "PLANES_SHARE", 1.0)
    tokenizer = train_tokenizer(corpus(studies))
    view = EncodedStudy(
        tokens=torch.zeros(9, TOKENS_PER_PICTURE, WIDTH), volumes=torch.zeros(25), levels=np.arange(9),
        restricted=np.zeros(9, np.int64), seen=SHOWN, facts=an_infarct(), old_infarcts="yes",
    )  # fmt: skip
    sample = Language(new_reader(tokenizer), tokenizer).sample(view, view, np.random.default_rng(0))
    report = parse_findings(tokenizer.decode(sample.report[:-1]))
    assert (report.dwi_quality, report.adc_quality, report.flair_quality) == ("absent", "absent", "good")
    assert report.old_infarcts == "unknown" and sample.volumes is None
