"""A trial without a cluster: what it may see, how it goes on, and what the step makes of it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.fixtures.arrays import TinyCohort, write_tiny_cohort
from willis.errors import CohortError, RayError, StepError
from willis.params import SearchRange, TrainParams, TuneParams
from willis.settings import Settings
from willis.steps.train import make_job
from willis.steps.tune import _fingerprint, tune
from willis.training.distributed import write_whole
from willis.training.trial import (
    ENDED,
    Course,
    Search,
    crash_of,
    read_course,
    run_trial,
    trial_job,
    write_failure,
)

PARAMS = TrainParams(epochs=3, batch_size=32, width=32, contrast_width=16)
SPACE = TuneParams(num_samples=2, grace_epochs=1, space={"learning_rate": SearchRange(choices=(5e-4,))})
NOWHERE = Settings(ray_address="127.0.0.1:1")
TIMED = {"seconds", "data_wait_share"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> TinyCohort:
    """Small, and read-only."""
    return write_tiny_cohort(tmp_path_factory.mktemp("tuned"), num_patients=96, seed=4)


def search_in(folder: Path, cohort: TinyCohort, *trials: TrainParams) -> Search:
    """A search whose folder is `folder`."""
    return Search(cohort.ingest, cohort.features, folder, folder / "embeddings", trials or (PARAMS,))


def ran(search: Search, number: int = 0) -> Course:
    """Run a trial here and say how far it came."""
    run_trial(search, number, lambda epochs, value: None)
    return read_course(search, number)


def same_course(one: Course, other: Course) -> bool:
    """Equal but for the time it took."""
    left, right = ([r.model_dump(exclude=TIMED) for r in course.records] for course in (one, other))
    return left == right


def poison(cohort: TinyCohort, folder: Path) -> TinyCohort:
    """A copy whose test and calibration rows hold nothing but nonsense."""
    ingest, features = folder / "ingest", folder / "features"
    shutil.copytree(cohort.ingest, ingest)
    shutil.copytree(cohort.features, features)
    frame = pd.read_parquet(features / "training_table.parquet")
    held = frame["split"].isin(["test", "calibration"])
    assert held.sum() > 10
    frame.loc[held, frame.select_dtypes("number").columns] = np.inf
    frame.loc[held, ["age", "nihss", "f_volume_ml", "mrs"]] = np.nan
    frame.loc[held, ["text", "f_laterality", "sex"]] = "poison"
    frame.loc[held, "has_text"] = True
    frame.to_parquet(features / "training_table.parquet")
    studies = pd.read_parquet(ingest / "studies.parquet")
    for row in studies[held.to_numpy()].itertuples():
        volumes = np.load(ingest / "shards" / f"volumes-{row.shard:03d}.npy", mmap_mode="r+")
        volumes[row.row] = 255
    return TinyCohort(ingest, features, cohort.num_patients)


def test_what_stands_in_the_test_split_changes_nothing(cohort: TinyCohort, tmp_path: Path) -> None:
    poisoned = poison(cohort, tmp_path / "poisoned")
    clean_search, poisoned_search = (
        search_in(tmp_path / name, each) for name, each in (("a", cohort), ("b", poisoned))
    )
    clean, other = trial_job(clean_search, 0), trial_job(poisoned_search, 0)
    assert clean.config == other.config and clean.cases.digest() == other.cases.digest()
    assert same_course(ran(clean_search), ran(poisoned_search))
    prints = [_fingerprint(each.ingest, each.features, PARAMS, SPACE) for each in (cohort, poisoned)]
    assert prints[0] == prints[1]


def test_nobody_outside_training_and_validation_can_be_looked_at(cohort: TinyCohort, tmp_path: Path) -> None:
    cases = trial_job(search_in(tmp_path, cohort), 0).cases
    held = ~np.isin(cases.split, ["train", "validation"])
    assert held.any() and not cases.modality_present[held].any() and not cases.text[held].any()
    assert np.isnan(cases.outcome[held]).all() and np.isnan(cases.grade[held]).all()
    assert np.isnan(cases.table[held]).all() and np.isnan(cases.facts[held]).all()


def test_training_and_validation_are_read_as_train_reads_them(cohort: TinyCohort, tmp_path: Path) -> None:
    trial = trial_job(search_in(tmp_path, cohort), 0)
    whole = make_job(cohort.ingest, cohort.features, tmp_path, PARAMS)
    assert trial.config == whole.config
    for split in ("train", "validation"):
        rows = whole.cases.rows(split, labelled_only=False)
        np.testing.assert_array_equal(trial.cases.rows(split, labelled_only=False), rows)
        for name in ("facts", "table", "text", "outcome", "grade"):
            one, other = getattr(trial.cases, name)[rows], getattr(whole.cases, name)[rows]
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)


def test_a_trial_that_was_killed_goes_on_and_reports_all_its_epochs(
    cohort: TinyCohort, tmp_path: Path
) -> None:
    whole, killed = search_in(tmp_path / "whole", cohort), search_in(tmp_path / "killed", cohort)
    reported: list[int] = []

    def die_in_the_second_epoch(epochs: int, value: float) -> None:
        if epochs == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(killed, 0, die_in_the_second_epoch)
    assert read_course(killed, 0).fate == "open"
    run_trial(killed, 0, lambda epochs, value: reported.append(epochs))
    assert reported == [1, 2, 3]
    assert same_course(read_course(killed, 0), ran(whole))


def test_a_trial_whose_loss_is_not_finite_leaves_its_reason(cohort: TinyCohort, tmp_path: Path) -> None:
    wild = PARAMS.model_copy(update={"learning_rate": 1e30, "clip_norm": 1e30})
    course = ran(search_in(tmp_path, cohort, PARAMS, wild), 1)
    assert course.fate == "failed" and "loss is" in course.reason


def test_a_crash_is_kept_in_its_own_words_and_starts_the_trial_again(
    cohort: TinyCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    search = search_in(tmp_path, cohort)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("willis.training.trial.fit", out_of_memory)
        run_trial(search, 0, lambda epochs, value: None)
    assert crash_of(search.trial(0)) == "RuntimeError: CUDA out of memory"
    assert len(ran(search).records) == PARAMS.epochs
    assert "process died without a word" in crash_of(search.trial(0))


def test_a_trial_is_stopped_or_finished_by_how_far_it_came(cohort: TinyCohort, tmp_path: Path) -> None:
    search = search_in(tmp_path, cohort)
    assert ran(search).fate == "open"
    write_whole(search.trial(0) / ENDED, "{}")
    assert read_course(search, 0).fate == "finished"
    lines = (search.trial(0) / "epochs.jsonl").read_text().splitlines(keepends=True)
    (search.trial(0) / "epochs.jsonl").write_text(lines[0])
    assert read_course(search, 0).fate == "stopped"


def test_the_search_fails_when_every_trial_failed(
    cohort: TinyCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_fail(search: Search, *_: object) -> list[Course]:
        for number in range(len(search.trials)):
            write_failure(search.trial(number), "no room")
        return [read_course(search, number) for number in range(len(search.trials))]

    monkeypatch.setattr("willis.training.search.search_on_cluster", all_fail)
    with pytest.raises(StepError, match="all 2 trials failed, the first because: no room; change"):
        tune(cohort.ingest, cohort.features, tmp_path / "out", PARAMS, SPACE, NOWHERE)
    assert not (tmp_path / "out").exists()


def test_a_ray_that_does_not_answer_is_named_with_what_to_do(cohort: TinyCohort, tmp_path: Path) -> None:
    with pytest.raises(RayError, match=r"no Ray cluster answers at '127.0.0.1:1'.*WILLIS_RAY_ADDRESS"):
        tune(cohort.ingest, cohort.features, tmp_path / "out", PARAMS, SPACE, NOWHERE)


def test_a_validation_split_without_outcomes_is_refused_before_anything_starts(
    cohort: TinyCohort, tmp_path: Path
) -> None:
    shutil.copytree(cohort.features, tmp_path / "features")
    path = tmp_path / "features" / "training_table.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame["split"] == "validation", ["mrs", "poor_outcome"]] = np.nan
    frame.to_parquet(path)
    with pytest.raises(CohortError, match="validation split has 0 patients with an outcome"):
        tune(cohort.ingest, tmp_path / "features", tmp_path / "out", PARAMS, SPACE, NOWHERE)


def test_a_folder_of_something_else_is_not_written_over(cohort: TinyCohort, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StepError, match="holds files that this step did not write"):
        tune(cohort.ingest, cohort.features, tmp_path, PARAMS, SPACE, NOWHERE)
