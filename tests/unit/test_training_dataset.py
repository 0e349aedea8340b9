"""Who is in which batch, and what is known of them: the same for whoever asks, whenever."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.fixtures.arrays import TinyCohort, tiny_job, write_tiny_cohort
from tests.fixtures.text_encoders import small_encoder
from willis.errors import CohortError, ShapeError, StepError
from willis.imaging.shards import StudyArrays
from willis.models.network import TrimodalNetwork
from willis.params import TrainParams
from willis.training.dataset import (
    ahead,
    collate,
    dropped,
    encode,
    epoch_order,
    fit_config,
    read_table,
    shares,
    with_dropout,
)  # fmt: skip
from willis.training.loop import Job
from willis.training.start import class_weights

PARAMS = TrainParams(width=32, contrast_width=16)


@pytest.fixture(scope="module")
def job(tiny_ingest: TinyCohort, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return tiny_job(tiny_ingest, tmp_path_factory.mktemp("job"), PARAMS)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world"), [(97, 16, 2), (5, 8, 4), (64, 32, 2), (1, 2, 2)]
)
def test_every_row_counts_once_over_all_ranks_and_ranks_bring_equally_many(
    num_rows: int, batch_size: int, world: int
) -> None:
    order = epoch_order(np.arange(num_rows), seed=1, epoch=0)
    per_rank = [shares(order, batch_size, rank, world) for rank in range(world)]
    counted: Counter[int] = Counter()
    for step in zip(*per_rank, strict=True):
        assert len({len(share.rows) for share in step}) == 1
        for share in step:
            counted.update(share.rows[share.weight > 0].tolist())
    assert counted == Counter(range(num_rows))


def test_the_joined_batch_does_not_depend_on_the_number_of_ranks() -> None:
    order = epoch_order(np.arange(50), seed=1, epoch=3)
    one = [set(share.rows.tolist()) for share in shares(order, 16, 0, 1)]
    two = [shares(order, 16, rank, 2) for rank in range(2)]
    assert one == [set(a.rows.tolist()) | set(b.rows.tolist()) for a, b in zip(*two, strict=True)]


def test_epochs_differ_and_the_same_epoch_is_the_same_after_a_restart() -> None:
    rows = np.arange(40)
    assert not np.array_equal(epoch_order(rows, 7, 0), epoch_order(rows, 7, 1))
    np.testing.assert_array_equal(epoch_order(rows, 7, 1), epoch_order(rows, 7, 1))


def test_modality_dropout_runs_through_all_seven_patterns_equally() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(dropped(np.ones(3, bool), 1.0, rng).tolist()) for _ in range(7000))
    assert len(drawn) == 7 and (False, False, False) not in drawn
    assert all(850 < count < 1150 for count in drawn.values())


def test_dropout_never_brings_back_what_is_absent_nor_takes_the_last() -> None:
    rng = np.random.default_rng(0)
    for present in (np.array([True, False, True]), np.array([False, False, True])):
        for _ in range(200):
            kept = dropped(present, 1.0, rng)
            assert kept.any() and not (kept & ~present).any()


def test_dropped_modalities_do_not_depend_on_the_batch_a_row_is_in(job: Job) -> None:
    params = PARAMS.model_copy(update={"modality_dropout": 0.9, "sequence_dropout": 0.9})
    rows = job.cases.rows("train", labelled_only=False)
    seen = []
    for world in (1, 2):
        kept = {}
        for rank in range(world):
            for share in shares(rows, 16, rank, world):
                batch = with_dropout(collate(job.cases, share, job.config), share, params, epoch=2)
                bits = np.concatenate([batch.modality_present, batch.sequence_present], axis=1)
                kept |= {int(row): tuple(bit) for row, bit in zip(share.rows, bits.tolist(), strict=True)}
        seen.append(kept)
    assert seen[0] == seen[1]


def test_a_batch_holds_the_codes_of_its_rows(job: Job) -> None:
    share = shares(job.cases.rows("test", labelled_only=False), 8, 0, 1)[0]
    batch = collate(job.cases, share, job.config)
    for place, row in enumerate(share.rows):
        np.testing.assert_array_equal(batch.volume[place], job.cases.arrays.volume(int(row)))


def test_columns_scales_and_prevalence_come_from_the_training_split_alone(
    tiny_ingest: TinyCohort,
) -> None:
    arrays = StudyArrays.open(tiny_ingest.ingest)
    frame = read_table(tiny_ingest.features, arrays)
    other = frame.copy()
    outside = other["split"] != "train"
    other.loc[outside, "age"] = 19.0
    other.loc[outside, "f_volume_ml"] = 250.0
    other.loc[outside, "f_laterality"] = "none"
    other.loc[outside, "poor_outcome"] = 1.0
    assert fit_config(other, arrays, PARAMS) == fit_config(frame, arrays, PARAMS)


def test_unlabelled_patients_are_read_but_left_out_where_an_outcome_is_needed(job: Job) -> None:
    every, labelled = (job.cases.rows("train", labelled_only=flag) for flag in (False, True))
    assert len(labelled) < len(every)
    assert np.isnan(job.cases.outcome[np.setdiff1d(every, labelled)]).all()


def test_a_patient_without_a_report_has_no_text(job: Job, tiny_ingest: TinyCohort) -> None:
    frame = pd.read_parquet(tiny_ingest.features / "training_table.parquet")
    np.testing.assert_array_equal(job.cases.modality_present[:, 1], frame["has_text"])


def test_a_table_in_another_order_than_the_shards_is_refused(tmp_path: Path) -> None:
    cohort = write_tiny_cohort(tmp_path, 12, seed=1)
    path = cohort.features / "training_table.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    with pytest.raises(ShapeError, match="not the 12 studies of .* in their order"):
        read_table(cohort.features, StudyArrays.open(cohort.ingest))


def test_features_that_are_not_there_are_named_with_the_step_that_makes_them(
    tmp_path: Path, tiny_ingest: TinyCohort
) -> None:
    with pytest.raises(StepError, match="training_table.parquet is missing; run `willis featurize`"):
        read_table(tmp_path, StudyArrays.open(tiny_ingest.ingest))


@pytest.mark.parametrize(("outcome", "said"), [(np.nan, "0 of .* have an outcome"), (1.0, "both classes")])
def test_a_training_split_without_both_outcomes_is_refused(
    tiny_ingest: TinyCohort, outcome: float, said: str
) -> None:
    arrays = StudyArrays.open(tiny_ingest.ingest)
    frame = read_table(tiny_ingest.features, arrays).assign(poor_outcome=outcome)
    with pytest.raises(CohortError, match=said):
        fit_config(frame, arrays, PARAMS)


def test_items_made_ahead_come_in_order_and_errors_reach_the_reader() -> None:
    def items() -> object:
        yield from range(5)
        raise ShapeError("made on purpose")

    seen = []
    with pytest.raises(ShapeError, match="made on purpose"):
        for item in ahead(items()):  # type: ignore[arg-type]
            seen.append(item)
    assert seen == list(range(5))


def test_tokens_exist_only_where_the_fusion_asks_for_them(tiny_ingest: TinyCohort, tmp_path: Path) -> None:
    pooled = tiny_job(tiny_ingest, tmp_path, PARAMS)
    token = tiny_job(tiny_ingest, tmp_path, PARAMS.model_copy(update={"fusion": "vdafm_token"}))
    share = shares(np.arange(12), 12, 0, 1)[0]
    batch = collate(pooled.cases, share, pooled.config)
    assert pooled.cases.text_tokens is None and batch.text_tokens is None and batch.text_real is None
    batch = collate(token.cases, share, token.config)
    assert batch.text_tokens.dtype == torch.float16 and batch.text_tokens.shape[:2] == batch.text_real.shape
    has_text = token.cases.modality_present[:, 1]
    np.testing.assert_array_equal(token.cases.text_tokens.real.any(axis=1), has_text)
    np.testing.assert_array_equal(token.cases.text, pooled.cases.text)
    assert token.cases.digest() != pooled.cases.digest()


def test_class_weights_come_from_the_labelled_rows_of_the_training_split_alone(job: Job) -> None:
    params, cases = PARAMS.model_copy(update={"class_weighting": "balanced"}), job.cases
    weights = class_weights(cases, params)
    elsewhere = cases.split != "train"
    other = replace(
        cases,
        outcome=np.where(elsewhere, 1.0, cases.outcome).astype(np.float32),
        grade=np.where(elsewhere, 6.0, cases.grade).astype(np.float32),
    )
    again = class_weights(other, params)
    assert torch.equal(weights.yes, again.yes) and torch.equal(weights.no, again.no)
    rows = [n for n in range(len(cases)) if cases.split[n] == "train" and cases.modality_present[n].any()
            and not np.isnan(cases.outcome[n])]  # fmt: skip
    for k in range(6):
        num_yes = sum(cases.grade[n] > k for n in rows)
        assert float(weights.yes[k]) == pytest.approx(len(rows) / (2 * num_yes))
        assert float(weights.no[k]) == pytest.approx(len(rows) / (2 * (len(rows) - num_yes)))
    assert class_weights(cases, PARAMS) is None


def test_the_network_takes_the_width_of_the_text_encoder_that_it_is_given(
    tiny_ingest: TinyCohort, tmp_path: Path
) -> None:
    arrays = StudyArrays.open(tiny_ingest.ingest)
    frame = read_table(tiny_ingest.features, arrays)
    params = PARAMS.model_copy(update={"text_encoder": str(small_encoder(tmp_path / "encoder"))})
    cases, config = encode(frame, arrays, params, tmp_path / "embeddings")
    assert config.text_width == 32 and cases.text.shape == (len(frame), 32)
    assert TrimodalNetwork(config).text.project[1].in_features == 32


def test_facts_and_table_are_cut_into_pieces_where_params_say_so(tiny_ingest: TinyCohort) -> None:
    arrays = StudyArrays.open(tiny_ingest.ingest)
    frame = read_table(tiny_ingest.features, arrays)
    config = fit_config(frame, arrays, PARAMS.model_copy(update={"numbers": "piecewise"}))
    assert any(column.knots for column in config.fact_columns)
    assert any(column.knots for column in config.table_columns)
