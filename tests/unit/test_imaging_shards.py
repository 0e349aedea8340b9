"""Codes of the training arrays: there and back, and read as views on the file."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.small_ingest import SHAPE, write_small_ingest
from willis.cohort.schema import SEQUENCES, Sequence
from willis.errors import ShapeError, StepError
from willis.imaging.shards import ShardWriter, StudyArrays, decode, encode

RANGES = {"dwi": (-4.0, 12.0), "flair": (-6.0, 10.0), "adc": (0.0, 4.0)}
"""Value of code 1 and of code 255, as docs/ingest.md states them."""


@pytest.mark.parametrize("sequence", ["dwi", "flair", "adc"])
def test_what_was_coded_comes_back_within_half_a_step(sequence: Sequence) -> None:
    low, high = RANGES[sequence]
    values = np.random.default_rng(1).uniform(low, high, (6, 7, 8)).astype(np.float32)
    brain = np.ones(values.shape, bool)
    back = decode(encode(values, brain, sequence)[None], (sequence,))[0]
    assert back.dtype == np.float32
    assert np.abs(back - values).max() <= (high - low) / 254 / 2 + 1e-5


def test_a_share_of_lesion_comes_back_within_half_a_step() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4)
    back = decode(encode(values, np.ones((4, 4, 4), bool), "lesion")[None], ("lesion",))[0]
    assert np.abs(back - values).max() <= 0.5 / 255 + 1e-6
    assert back[0, 0, 0] == 0 and back[-1, -1, -1] == pytest.approx(1.0)


@pytest.mark.parametrize("sequence", ["dwi", "flair", "adc"])
def test_the_ends_of_the_range_are_codes_1_and_255_and_what_lies_beyond_is_clipped(
    sequence: Sequence,
) -> None:
    low, high = RANGES[sequence]
    values = np.array([low - 9, low, high, high + 9], np.float32).reshape(4, 1, 1)
    codes = encode(values, np.ones((4, 1, 1), bool), sequence)
    assert codes.ravel().tolist() == [1, 1, 255, 255]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_outside_the_brain_the_code_and_the_value_are_zero(sequence: Sequence) -> None:
    values = np.full((3, 3, 3), 0.9, np.float32)
    codes = encode(values, np.zeros((3, 3, 3), bool), sequence)
    assert not codes.any() and not decode(codes[None], (sequence,)).any()


def test_a_tensor_decodes_as_an_array_does() -> None:
    import torch

    codes = np.random.default_rng(2).integers(0, 256, (2, 4, 3, 5, 2)).astype(np.uint8)
    array, tensor = decode(codes, SEQUENCES), decode(torch.from_numpy(codes), SEQUENCES)
    np.testing.assert_allclose(tensor.numpy(), array, atol=1e-5)


def test_channels_that_are_not_the_sequences_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 3, 3\); axis -4 must hold 3 channels"):
        decode(np.zeros((2, 3, 3, 3), np.uint8), ("dwi", "adc", "flair"))


def test_studies_come_back_across_shards_in_the_order_they_were_added(tmp_path: Path) -> None:
    folder = write_small_ingest(tmp_path / "ingest", 12)
    written = np.random.default_rng(3)
    expected = [written.integers(0, 255, (3, *SHAPE)).astype(np.uint8) for _ in range(12)]
    assert len(list((folder / "shards").iterdir())) == 2
    arrays = StudyArrays.open(folder)
    assert len(arrays) == 12 and arrays.patient_ids[11] == "sub-0011"
    for index, codes in enumerate(expected):
        np.testing.assert_array_equal(arrays.volume(index), codes)


def test_a_study_is_a_read_only_view_on_the_mapped_file(tmp_path: Path) -> None:
    arrays = StudyArrays.open(write_small_ingest(tmp_path / "ingest", 4))
    view = arrays.volume(2)
    assert isinstance(view, np.memmap) and not view.flags.owndata and not view.flags.writeable
    assert Path(str(view.filename)).name == "volumes-000.npy"
    assert np.shares_memory(view, arrays.volume(2)) and not np.shares_memory(view, arrays.volume(1))


def test_arrays_travel_to_another_process_as_a_path(tmp_path: Path) -> None:
    arrays = StudyArrays.open(write_small_ingest(tmp_path / "ingest", 4))
    arrays.volume(0)
    sent = pickle.dumps(arrays)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).volume(3), arrays.volume(3))


def test_a_shard_is_a_plain_npy_file_of_its_length(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "volumes", (1, 2, 3, 4), 3) as writer:
        places = [writer.add(np.full((1, 2, 3, 4), n, np.uint8)) for n in range(5)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    first, second = (np.load(tmp_path / f"volumes-00{n}.npy") for n in (0, 1))
    assert first.shape == (3, 1, 2, 3, 4) and second.shape == (2, 1, 2, 3, 4)
    assert second[1].tolist() == np.full((1, 2, 3, 4), 4).tolist()


@pytest.mark.parametrize("codes", [np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 3, 4), np.float32)])
def test_codes_of_another_shape_or_kind_are_refused(tmp_path: Path, codes: np.ndarray) -> None:
    with (
        ShardWriter(tmp_path, "volumes", (1, 2, 3, 4), 3) as writer,
        pytest.raises(ShapeError, match=r"shard volumes holds uint8 \(1, 2, 3, 4\)"),
    ):
        writer.add(codes)


def test_a_folder_that_ingest_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"ingest\.json is missing; run `willis ingest`"):
        StudyArrays.open(tmp_path)
