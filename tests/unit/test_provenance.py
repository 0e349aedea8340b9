"""Why a step would run again."""

from pathlib import Path

import pytest

from willis.errors import ParamsError
from willis.params import Params, parse_section
from willis.provenance import GRAPH, code_digests, cohort_digest, last_seconds, record_step, why


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
