"""The loop in a bare process: its schedule, its restarts, its checkpoints, what it refuses."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.file_limit import files_of_at_most
from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.fixtures.killed import KilledError, killed_in
from willis.errors import BundleError, CohortError, StepError
from willis.models.network import TrimodalNetwork
from willis.params import TrainParams
from willis.training.checkpoints import Checkpoints, TrainState
from willis.training.dataset import Share, collate
from willis.training.loop import World, fit
from willis.training.metrics import EpochRecord, auc
from willis.training.optimizer import learning_rate, make_optimizer
from willis.training.validation import is_better

PARAMS = TrainParams(epochs=4, batch_size=16, learning_rate=3e-3, width=32, contrast_width=16, num_workers=1)
TIMED = {"seconds", "data_wait_share"}


@pytest.fixture(scope="module")
def course(tiny_ingest: TinyCohort, tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    return fit(tiny_job(tiny_ingest, tmp_path_factory.mktemp("course"), PARAMS), World())


def _metrics(state: TrainState) -> list[dict[str, float]]:
    return [record.model_dump(exclude=TIMED) for record in state.history]


def test_training_learns_what_the_tiny_cohort_holds(course: TrainState) -> None:
    assert course.history[-1].val_loss < course.history[0].val_loss
    assert course.history[course.best_epoch].val_auc > 0.75


def test_a_run_that_is_cut_off_ends_as_if_nothing_had_happened(
    course: TrainState, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS)

    with pytest.raises(KilledError):
        fit(job, World(), killed_in(2))
    resumed = fit(job, World())
    assert _metrics(resumed) == _metrics(course)
    for name, value in course.best.items():
        torch.testing.assert_close(resumed.best[name], value, rtol=0, atol=0)


def test_the_best_weights_are_kept_and_the_run_stops_when_patience_is_over(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"epochs": 30, "patience": 2, "learning_rate": 2e-2})
    state = fit(tiny_job(tiny_ingest, tmp_path, params), World())
    losses = [record.val_loss for record in state.history]
    assert state.finished and len(losses) < 30
    assert state.best_epoch == int(np.argmin(losses)) == len(losses) - 3


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    params = TrainParams(learning_rate=0.1, warmup_share=0.2)
    rates = [learning_rate(params, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.005) and rates[19] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05 * (1 + math.cos(math.pi * 40 / 80)))
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[99] < 1e-4


def test_only_weights_of_maps_decay(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    from willis.models.network import TrimodalNetwork

    network = TrimodalNetwork(tiny_job(tiny_ingest, tmp_path, PARAMS).config)
    decayed, kept = (group["params"] for group in make_optimizer(network, PARAMS).param_groups)
    assert len(decayed) + len(kept) == len(list(network.parameters()))
    ids = {id(parameter) for parameter in kept}
    assert {id(network.absent), id(network.image.volume.stem.template)} <= ids
    assert id(network.head.logit.weight) not in ids


def test_a_loss_that_is_not_finite_names_epoch_step_and_rows(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS)
    text = job.cases.text.copy()
    text[job.cases.rows("train", labelled_only=True)[0]] = np.inf
    job = replace(job, cases=replace(job.cases, text=text))
    with pytest.raises(StepError, match=r"the loss is nan in epoch 0, step \d \(outcome .* rows .*\d+"):
        fit(job, World())


def test_a_validation_split_without_an_outcome_is_refused(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS)
    outcome = np.where(job.cases.split == "validation", np.nan, job.cases.outcome).astype(np.float32)
    job = replace(job, cases=replace(job.cases, outcome=outcome))
    with pytest.raises(CohortError, match="nobody in the validation split has an outcome"):
        fit(job, World())


@pytest.mark.parametrize("use", [("table",), ("image",), ("text",), ("image", "text")])
def test_any_set_of_modalities_trains(use: tuple[str, ...], tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"use_modalities": use, "epochs": 1})
    assert math.isfinite(fit(tiny_job(tiny_ingest, tmp_path, params), World()).history[0].val_loss)


def test_bfloat16_trains_to_a_like_loss(course: TrainState, tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"precision": "bfloat16"})
    state = fit(tiny_job(tiny_ingest, tmp_path, params), World())
    assert state.history[-1].val_loss == pytest.approx(course.history[-1].val_loss, abs=0.08)


@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_a_rare_outcome_is_foretold_as_often_as_it_happens_whatever_the_weights(
    weighting: str, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"outcome": "binary", "class_weighting": weighting})
    job = tiny_job(tiny_ingest, tmp_path, params)
    rare = np.where(np.isnan(job.cases.grade), np.nan, job.cases.grade >= 6).astype(np.float32)
    rows = job.cases.rows("train", labelled_only=True)
    share = float(rare[rows].mean())
    config = job.config.model_copy(update={"prevalence": share})
    job = replace(job, cases=replace(job.cases, outcome=rare), config=config)
    network = TrimodalNetwork(config)
    network.load_state_dict(fit(job, World()).best)
    with torch.no_grad():
        logit = network.eval()(collate(job.cases, Share(rows, np.ones(len(rows), np.float32)), config)).logit
    assert share < 0.2 and float(logit.sigmoid().mean()) == pytest.approx(share, abs=0.05)


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    outcome, score = rng.integers(0, 2, 60).astype(np.float32), rng.integers(0, 9, 60).astype(np.float32)
    pairs = [(p > g) + 0.5 * (p == g) for p in score[outcome == 1] for g in score[outcome == 0]]
    assert auc(outcome, score) == pytest.approx(np.mean(pairs))
    assert auc(np.ones(3, np.float32), score[:3]) is None


def test_auc_stops_a_run_only_where_there_is_one(course: TrainState) -> None:
    good, bad = course.history[0].model_copy(update={"val_auc": 0.9, "val_loss": 0.7}), course.history[0]
    bad = bad.model_copy(update={"val_auc": 0.8, "val_loss": 0.5})
    assert is_better(good, bad, "auc") and not is_better(good, bad, "loss")
    assert not is_better(good.model_copy(update={"val_auc": None}), bad, "auc")


def test_a_checkpoint_comes_back_as_it_was(course: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "a")
    checkpoints.save(course)
    found = checkpoints.newest()
    assert found.history == course.history and found.best_epoch == course.best_epoch and found.finished
    assert all(torch.equal(found.best[name], value) for name, value in course.best.items())


@pytest.mark.parametrize("damage", ["cut", "unsealed", "flipped", "foreign"])
def test_the_newest_whole_checkpoint_is_found_whatever_lies_above_it(
    damage: str, course: TrainState, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, "a")
    older = replace(course, history=course.history[:2])
    checkpoints.save(older)
    newest = (Checkpoints(tmp_path, "b") if damage == "foreign" else checkpoints).save(course)
    content = bytearray((newest / "state.pt").read_bytes())
    if damage == "cut":
        (newest / "state.pt").write_bytes(content[: len(content) // 2])
    if damage == "unsealed":
        (newest / "complete.json").unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        (newest / "state.pt").write_bytes(content)
    shutil.copytree(newest, tmp_path / ".epoch-00009.123")
    assert checkpoints.newest().next_epoch == 2
    checkpoints.clear_foreign()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00002"]


def test_a_full_disk_is_said_and_leaves_the_older_checkpoint(course: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "a")
    small = replace(course, network={}, best={}, optimizer={}, history=course.history[:1])
    checkpoints.save(small)
    refused = pytest.raises(StepError, match=r"epoch-00004 cannot be written: .*free some space")
    with files_of_at_most(65536), refused:
        checkpoints.save(course)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001"]
    assert checkpoints.newest().next_epoch == 1


def test_a_record_is_one_line_of_json(course: TrainState) -> None:
    line = course.history[0].model_dump_json()
    assert "\n" not in line and EpochRecord.model_validate_json(line) == course.history[0]


def test_a_checkpoint_of_another_architecture_is_told_as_one(
    course: TrainState, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS)
    job.checkpoints.save(replace(course, finished=False))
    wider = replace(job, config=job.config.model_copy(update={"width": 64}))
    with pytest.raises(BundleError, match=r"checkpoints is of another architecture: .*remove that folder"):
        fit(wider, World())
