"""SRC-MT: what the teacher is and sees, what agreeing with it means; ranks and kills change nothing."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.fixtures.arrays import TinyCohort, tiny_job
from tests.fixtures.killed import KilledError, killed_in
from willis.errors import BundleError
from willis.models.losses import Losses, outcome_loss
from willis.models.network import Output, TrimodalNetwork
from willis.params import TrainParams
from willis.training.checkpoints import TrainState
from willis.training.dataset import collate, shares, with_dropout
from willis.training.loop import Tick, World, _Run, fit
from willis.training.mean_teacher import (
    Answers,
    MeanTeacher,
    prediction_consistency,
    ramp,
    relation_consistency,
    relations,
    with_consistency,
)

PARAMS = TrainParams(
    semi_supervision="src_mt",
    use_unlabelled=False,
    epochs=3,
    batch_size=24,
    learning_rate=3e-3,
    width=32,
    contrast_width=16,
    num_workers=1,
)
TIMED = {"seconds", "data_wait_share"}


@pytest.fixture(scope="module")
def course(tiny_ingest: TinyCohort, tmp_path_factory: pytest.TempPathFactory) -> TrainState:
    return fit(tiny_job(tiny_ingest, tmp_path_factory.mktemp("course"), PARAMS), World())


def _quiet(tick: Tick) -> None:
    """Nobody listens."""


def _answers(seed: int = 0) -> Answers:
    """Nine rows, three of which only fill the batch."""
    torch.manual_seed(seed)
    weight = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0]).float()
    return Answers(torch.randn(9), torch.randn(9, 5), torch.randn(9), torch.randn(9, 5), weight)


def _slow_relations(embedding: np.ndarray) -> np.ndarray:
    rows = []
    for one in embedding:
        alike = [sum(a * b for a, b in zip(one, other, strict=True)) for other in embedding]
        length = math.sqrt(sum(value**2 for value in alike))
        rows.append([value / length for value in alike])
    return np.array(rows)


def test_predictions_are_compared_patient_by_patient_without_the_rows_that_fill_a_batch() -> None:
    answers = _answers()
    pairs = zip(answers.logit.tolist(), answers.teacher_logit.tolist(), answers.weight.tolist(), strict=True)
    apart = [(1 / (1 + math.exp(-s)) - 1 / (1 + math.exp(-t))) ** 2 for s, t, weight in pairs if weight]
    assert float(prediction_consistency(answers)) == pytest.approx(sum(apart) / len(apart), rel=1e-5)


def test_the_relation_matrix_is_what_loops_over_pairs_give() -> None:
    answers = _answers()
    real = answers.weight > 0
    found = relations(answers.embedding, answers.weight)
    slow = _slow_relations(answers.embedding[real].double().numpy())
    np.testing.assert_allclose(found[real][:, real], slow, atol=1e-5)
    assert not found[~real].any() and not found[:, ~real].any()


def test_relations_are_compared_row_by_row_without_the_rows_that_fill_a_batch() -> None:
    answers = _answers()
    real = answers.weight > 0
    student, teacher = (
        _slow_relations(embedding[real].double().numpy())
        for embedding in (answers.embedding, answers.teacher_embedding)
    )
    apart = [sum((student[i, j] - teacher[i, j]) ** 2 for j in range(6)) for i in range(6)]
    assert float(relation_consistency(answers)) == pytest.approx(sum(apart) / len(apart), rel=1e-4)


def test_both_terms_join_the_loss_by_their_weight() -> None:
    answers, one = _answers(), torch.tensor(1.0)
    losses = with_consistency(Losses(one, one, one, one), answers, 0.25)
    both = float(prediction_consistency(answers)) + float(relation_consistency(answers))
    assert losses.numbers()["total"] == pytest.approx(1 + 0.25 * both)


def test_a_batch_of_nothing_but_filling_rows_asks_nothing_of_anybody() -> None:
    answers = _answers()
    logit, embedding = answers.logit.requires_grad_(), answers.embedding.requires_grad_()
    nobody = replace(answers, weight=torch.zeros(9))
    loss = prediction_consistency(nobody) + relation_consistency(nobody)
    loss.backward()
    assert float(loss.detach()) == 0 and not logit.grad.any() and not embedding.grad.any()


def test_the_weight_rises_as_the_ramp_says_and_stays() -> None:
    params = PARAMS.model_copy(update={"lambda_consistency": 2.0, "consistency_ramp_share": 0.5})
    found = [ramp(params, step, 40) for step in range(40)]
    slow = [2 * math.exp(-5 * (1 - step / 20) ** 2) if step < 20 else 2.0 for step in range(40)]
    assert found == pytest.approx(slow)
    assert found[0] == pytest.approx(2 * 0.0067379, rel=1e-4)
    at_once = params.model_copy(update={"consistency_ramp_share": 0.0})
    assert ramp(at_once, 0, 40) == 2.0


def test_the_teacher_is_the_mean_of_all_students_at_first_and_their_exponential_average_then(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"teacher_decay": 0.8, "use_modalities": ("table",)})
    students: list[dict[str, torch.Tensor]] = []

    def note(tick: Tick) -> None:
        if tick.record is None:
            students.append({name: value.detach().clone() for name, value in run.network.named_parameters()})

    run = _Run(tiny_job(tiny_ingest, tmp_path, params), World(), note)
    state = run.resume()
    while not state.finished:
        state = run.epoch(state)
    assert len(students) == run.steps > 5
    for name in students[0]:
        average = np.mean([student[name].double().numpy() for student in students[:5]], axis=0)
        for student in students[5:]:
            average = 0.8 * average + 0.2 * student[name].double().numpy()
        np.testing.assert_allclose(state.teacher[name], average, atol=1e-6)


def test_the_teacher_sees_the_same_cases_with_other_modalities_and_sequences_dropped(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"modality_dropout": 0.9, "sequence_dropout": 0.9})
    job = tiny_job(tiny_ingest, tmp_path, params)
    teacher, seen = MeanTeacher(TrimodalNetwork(job.config), job.cases, params), []
    teacher.network.register_forward_pre_hook(lambda _, batch: seen.append(batch[0]))
    share = shares(job.cases.rows("train", labelled_only=False), 24, 0, 1)[0]
    batch = with_dropout(collate(job.cases, share, job.config), share, params, epoch=1)
    one, again = teacher.answer(share, batch, epoch=1), teacher.answer(share, batch, epoch=1)
    assert seen[0].volume is batch.volume and seen[0].table is batch.table
    for name, whole in (
        ("modality_present", job.cases.modality_present),
        ("sequence_present", job.cases.arrays.sequence_present),
    ):
        student, taught = getattr(batch, name), getattr(seen[0], name)
        assert not (taught & ~torch.from_numpy(whole[share.rows])).any()
        assert (taught & ~student).any() and (student & ~taught).any()
        assert torch.equal(taught, getattr(seen[1], name))
    assert not torch.equal(one.embedding, again.embedding)  # the network's own dropout is on
    assert not one.logit.requires_grad


@pytest.mark.parametrize(("method", "moved"), [("none", False), ("src_mt", True)])
def test_patients_without_an_outcome_move_the_weights_and_a_teacher_is_made_only_when_switched_on(
    method: str, moved: bool, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    params = PARAMS.model_copy(update={"semi_supervision": method, "epochs": 1, "fusion": "concat"})
    job, other = (tiny_job(tiny_ingest, tmp_path / name, params) for name in ("as-they-are", "changed"))
    table = other.cases.table.copy()
    table[np.isnan(other.cases.outcome)] += 1.0
    other = replace(other, cases=replace(other.cases, table=table))
    one, changed = (fit(each, World()) for each in (job, other))
    assert moved != all(torch.equal(one.best[name], value) for name, value in changed.best.items())
    assert one.history[0].num_patients == len(job.cases.rows("train", labelled_only=not moved))
    assert (one.teacher is not None) == (one.history[0].relation_loss is not None) == moved


def test_the_teacher_is_what_is_validated_and_kept(
    course: TrainState, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS)
    rows = job.cases.rows("validation", labelled_only=True)
    share = shares(rows, len(rows), 0, 1)[0]
    batch = collate(job.cases, share, job.config)
    found = []
    for weights in (course.teacher, course.best, course.network):
        network = TrimodalNetwork(job.config).eval()
        network.load_state_dict(weights)
        with torch.no_grad():
            output: Output = network(batch)
        loss = outcome_loss(output.logit, batch.outcome, batch.grade, batch.weight, output.offsets)
        found.append(float(loss))
    assert found[0] == pytest.approx(course.history[-1].val_loss, abs=1e-5)
    assert found[1] == pytest.approx(course.history[course.best_epoch].val_loss, abs=1e-5)
    assert abs(found[2] - found[0]) > 1e-4


def test_a_run_with_a_teacher_that_is_cut_off_ends_as_if_nothing_had_happened(
    course: TrainState, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS)

    with pytest.raises(KilledError):
        fit(job, World(), killed_in(1))
    resumed = fit(job, World())
    for one, other in zip(resumed.history, course.history, strict=True):
        assert one.model_dump(exclude=TIMED) == other.model_dump(exclude=TIMED)
    for name, value in course.network.items():
        assert torch.equal(resumed.network[name], value)
        assert torch.equal(resumed.teacher[name], course.teacher[name])
        assert torch.equal(resumed.best[name], course.best[name])


@pytest.mark.parametrize(("held", "asked"), [("none", "src_mt"), ("src_mt", "none")])
def test_a_checkpoint_that_lacks_the_teacher_or_has_one_too_many_is_told(
    held: str, asked: str, course: TrainState, tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    job = tiny_job(tiny_ingest, tmp_path, PARAMS.model_copy(update={"semi_supervision": asked}))
    teacher = course.teacher if held == "src_mt" else None
    job.checkpoints.save(replace(course, teacher=teacher, finished=False))
    with pytest.raises(BundleError, match=r"holds (no|a) teacher .*semi_supervision.*remove that"):
        fit(job, World())


def test_it_trains_in_bfloat16_and_with_tokens(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"epochs": 1, "precision": "bfloat16", "fusion": "vdafm_token"})
    record = fit(tiny_job(tiny_ingest, tmp_path, params), World()).history[0]
    assert math.isfinite(record.val_loss) and 0 < record.consistency_loss < 1 and 0 < record.relation_loss < 4


def _run_with_opinions(cohort: TinyCohort, folder: Path, fusion: str, world: World) -> _Run:
    """A run as after some steps: nothing is at its start, and the teacher is elsewhere than the student."""
    params = PARAMS.model_copy(
        update={"fusion": fusion, "dropout": 0.0, "modality_dropout": 0.8, "sequence_dropout": 0.5}
    )
    run = _Run(tiny_job(cohort, folder, params), world, _quiet)
    torch.manual_seed(0)
    for network in (run.network, run.kept):
        for parameter in network.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.05)
    return run


def _losses_of(run: _Run) -> Losses:
    share, batch, _ = next(run.batches(0))
    losses = run.losses(share, batch, epoch=0, step=run.steps)
    losses.total.backward()
    return losses


def _one_rank(rank: int, cohort: TinyCohort, folder: Path, fusion: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    run = _run_with_opinions(cohort, folder, fusion, World(rank, 2))
    losses = _losses_of(run).numbers()
    gradients = {name: parameter.grad.clone() for name, parameter in run.network.named_parameters()}
    # Nobody counts, nobody has an outcome: still every parameter must get a gradient, or DDP would stop.
    share, batch, _ = next(run.batches(1))
    for unusual in (
        replace(batch, weight=torch.zeros_like(batch.weight)),
        replace(batch, outcome=torch.full_like(batch.outcome, torch.nan)),
    ):
        run.losses(share, unusual, epoch=1, step=0).total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in run.network.parameters())
    torch.save((losses, gradients), folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("fusion", ["vdafm_pooled", "late"])
def test_loss_and_gradients_of_two_ranks_equal_one_process_on_the_joined_batch(
    tiny_ingest: TinyCohort, tmp_path: Path, fusion: str
) -> None:
    mp.spawn(_one_rank, args=(tiny_ingest, tmp_path, fusion), nprocs=2)
    run = _run_with_opinions(tiny_ingest, tmp_path, fusion, World())
    losses = _losses_of(run).numbers()
    assert losses["consistency"] > 1e-4 and losses["relation"] > 1e-4
    supervised = losses["outcome"] + 0.005 * losses["contrast"] + 0.1 * losses["align"]
    supervised += 6.0 * losses["subsets"]
    assert losses["total"] == pytest.approx(supervised + losses["consistency"] + losses["relation"])
    assert all(parameter.grad is None for parameter in run.kept.parameters())
    for rank in range(2):
        their_losses, gradients = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert their_losses == pytest.approx(losses, rel=1e-4, abs=1e-5)
        for name, parameter in run.network.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
