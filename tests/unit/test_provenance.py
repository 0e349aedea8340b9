"""Why a step would run again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from willis.errors import ParamsError
from willis.params import Params, parse_section
from willis.provenance import (
    GRAPH,
    RunInputs,
    code_digest,
    code_digests,
    cohort_digest,
    explain,
    last_seconds,
    record_inputs,
    record_step,
    why,
)
from willis.reports import model_files
from willis.settings import settings


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    for step in GRAPH:
        record_step(tmp_path, step, Params(), "cohort-1", 1.5)
    return tmp_path


def test_a_step_that_never_ran_says_so(tmp_path: Path) -> None:
    reasons = why("train", Params(), tmp_path)
    assert not reasons.done
    assert "never finished" in reasons.reasons[0]


def test_nothing_changed_means_done(finished: Path) -> None:
    assert all(why(step, Params(), finished).done for step in GRAPH)


def test_a_changed_parameter_is_named_with_both_values(finished: Path) -> None:
    changed = parse_section(Params, {"train": {"epochs": 3}}, "test")
    reasons = why("train", changed, finished)
    assert f"params.train.epochs: {Params().train.epochs} -> 3" in reasons.reasons


def test_steps_downstream_of_a_change_run_and_upstream_ones_do_not(finished: Path) -> None:
    changed = parse_section(Params, {"train": {"epochs": 3}}, "test")
    again = {step for step in GRAPH if not why(step, changed, finished).done}
    assert again == {"train", "evaluate", "promote"}


def test_a_changed_cohort_runs_everything(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cohort = tmp_path_factory.mktemp("cohort")
    (cohort / "participants.tsv").write_text("participant_id\nsub-1\n")
    assert all(not why(step, Params(), finished, cohort).done for step in GRAPH)


def test_the_digest_of_a_cohort_sees_a_changed_byte_count(tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    table.write_text("a")
    before = cohort_digest(tmp_path)
    table.write_text("ab")
    assert cohort_digest(tmp_path) != before


def test_an_unknown_step_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="'trian'; it must be one of version, ingest"):
        why("trian", Params(), tmp_path)


def test_the_code_behind_training_holds_the_network_and_not_the_monitor() -> None:
    modules = code_digests("train")
    assert "willis.models.network" in modules
    assert "willis.monitoring.drift" not in modules


@pytest.fixture
def definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with Feast's definitions, named by the settings."""
    monkeypatch.setenv("WILLIS_FEATURE_REPO", str(tmp_path))
    settings.cache_clear()
    (tmp_path / "features.py").write_text("TTL = 30\n")
    yield tmp_path / "features.py"
    settings.cache_clear()


def test_an_edit_of_the_feature_definitions_changes_featurize_alone(definitions: Path) -> None:
    before = {step: code_digest(step) for step in GRAPH}
    definitions.write_text("TTL = 31\n")
    assert {step for step in GRAPH if code_digest(step) != before[step]} == {"featurize"}


def test_another_model_or_prompt_runs_the_reports_again_and_what_reads_them(finished: Path) -> None:
    params = parse_section(Params, {"report": {"model": "google/medgemma-1.5-4b-it"}}, "params.yaml")
    assert {step for step in GRAPH if why(step, params, finished).done} == {"version", "ingest", "pretrain"}
    assert {step for step in GRAPH if "willis.reports.prompt" in code_digests(step)} == {"report"}


def test_other_weights_of_the_packaged_reader_change_report_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "FOLDER", tmp_path)
    weights, card = tmp_path / "model.safetensors", tmp_path / "README.md"
    weights.write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    before = {step: code_digest(step) for step in GRAPH}
    weights.write_bytes(b"two")
    assert {step for step in GRAPH if code_digest(step) != before[step]} == {"report"}
    before = {step: code_digest(step) for step in GRAPH}
    card.write_text("words")
    assert {step for step in GRAPH if code_digest(step) != before[step]} == set()


def test_other_weights_in_a_model_s_own_folder_change_report_alone(tmp_path: Path) -> None:
    weights, model = tmp_path / "model.safetensors", str(tmp_path)
    weights.write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    before = {step: code_digest(step, model) for step in GRAPH}
    weights.write_bytes(b"two")
    assert {step for step in GRAPH if code_digest(step, model) != before[step]} == {"report"}


def test_the_seconds_of_the_last_run_are_kept(finished: Path) -> None:
    assert last_seconds(finished, "train") == 1.5
    assert last_seconds(finished, "deploy") is None


def test_a_step_from_the_cache_keeps_the_record_of_the_run_that_made_it(finished: Path) -> None:
    record_step(finished, "train", Params(), "cohort-1", None)
    assert last_seconds(finished, "train") == 1.5


def test_a_step_from_the_cache_of_other_inputs_replaces_the_record(finished: Path) -> None:
    earlier = parse_section(Params, {"train": {"epochs": 3}}, "test")
    record_step(finished, "train", earlier, "cohort-1", None)
    assert why("train", earlier, finished).done
    assert last_seconds(finished, "train") is None


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A finished run on a file that says 20 epochs; its source has lesions alone and a cohort of its own."""
    written = {"train": {"epochs": 20}, "cohort": {"num_patients": 50}}
    (tmp_path / "mine.yaml").write_text("train: {epochs: 20}\ncohort: {num_patients: 50}\n")
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (cohort / "participants.tsv").write_text("participant_id\n")
    used = parse_section(Params, written | {"ingest": {"sequences": ["lesion"], "planes": ["flair"]}}, "test")
    run = tmp_path / "pipeline"
    for step in GRAPH:
        record_step(run, step, used, cohort_digest(cohort), 1.5)
    inputs = RunInputs(
        params_file=tmp_path / "mine.yaml",
        written=parse_section(Params, written, "test").model_dump(mode="json"),
        used=used.model_dump(mode="json"),
        cohort=cohort,
        synthesised=True,
    )
    record_inputs(run, inputs)
    return run


def test_what_the_source_adapted_is_no_reason(adapted: Path) -> None:
    assert all(explain(step, adapted).done for step in GRAPH)


def test_an_edit_of_the_file_that_the_run_read_is_a_reason(adapted: Path) -> None:
    (adapted.parent / "mine.yaml").write_text("train: {epochs: 21}\ncohort: {num_patients: 50}\n")
    assert explain("train", adapted).reasons == ("params.train.epochs: 20 -> 21",)
    assert explain("featurize", adapted).done


def test_an_edit_of_a_key_that_the_source_had_adapted_is_a_reason(adapted: Path) -> None:
    text = "train: {epochs: 20}\ncohort: {num_patients: 50}\ningest: {sequences: [dwi]}\n"
    (adapted.parent / "mine.yaml").write_text(text)
    assert explain("ingest", adapted).reasons == ("params.ingest.sequences: ['lesion'] -> ['dwi']",)


def test_another_file_of_parameters_may_be_asked_about(adapted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("train: {epochs: 5}\ncohort: {num_patients: 50}\n")
    assert "params.train.epochs: 20 -> 5" in explain("train", adapted, other).reasons


def test_a_change_in_the_cohort_of_the_run_is_a_reason(adapted: Path) -> None:
    cohort = adapted.parent / "cohort"
    (cohort / "participants.tsv").write_text("participant_id\nsub-1\n")
    assert explain("version", adapted).reasons == (f"the files of {cohort} changed",)
    assert "version would run again" in explain("ingest", adapted).reasons


def test_another_cohort_may_be_asked_about(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    assert explain("version", adapted, cohort=other).reasons == (f"the files of {other} changed",)


def test_a_cohort_that_would_be_made_anew_is_a_reason(adapted: Path) -> None:
    (adapted.parent / "mine.yaml").write_text("train: {epochs: 20}\ncohort: {num_patients: 60}\n")
    assert explain("version", adapted).reasons == ("params.cohort.num_patients: 50 -> 60",)


def test_without_a_recorded_run_the_file_that_is_named_is_read(finished: Path) -> None:
    (finished / "params.yaml").write_text("train: {epochs: 3}\n")
    assert not explain("train", finished, finished / "params.yaml").done
