import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from willis.cohort.schema import SEQUENCES
from willis.errors import ShapeError, StepError
from willis.imaging.shards import CODE_RANGES, ShardWriter, StudyArrays, decode, encode

SHAPE = (5, 6, 4)


def ingest_like(folder: Path, num_studies: int = 5) -> Path:
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shards", "volumes", (2, *SHAPE), 2) as writer:
        codes = rng.integers(0, 256, (num_studies, 2, *SHAPE), dtype=np.uint8)
        places = [writer.add(item) for item in codes]
    pd.DataFrame(
        {
            "patient_id": [f"sub-{i}" for i in range(num_studies)],
            "has_dwi": True, "has_adc": False, "has_planes": False,
            "shard": [p[0] for p in places], "row": [p[1] for p in places],
        }
    ).to_parquet(folder / "studies.parquet")  # fmt: skip
    (folder / "ingest.json").write_text('{"sequences": ["dwi", "adc"], "planes": []}')
    np.save(folder / "expected.npy", codes)
    return folder


def test_studies_come_back_as_they_went_in_over_several_shards(tmp_path: Path) -> None:
    arrays = StudyArrays.open(ingest_like(tmp_path))
    expected = np.load(tmp_path / "expected.npy")
    assert [len(np.load(tmp_path / "shards" / f"volumes-00{i}.npy")) for i in range(3)] == [2, 2, 1]
    for index in range(len(arrays)):
        np.testing.assert_array_equal(arrays.volume(index), expected[index])
    assert arrays.sequence_present.tolist() == [[True, False]] * 5


def test_a_volume_is_a_view_on_the_file_and_pickles_as_a_path(tmp_path: Path) -> None:
    arrays = StudyArrays.open(ingest_like(tmp_path))
    assert isinstance(arrays.volume(0).base, np.memmap)
    assert len(pickle.dumps(arrays)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(arrays)).volume(4), arrays.volume(4))


def test_planes_of_a_study_without_planes_are_none_at_all(tmp_path: Path) -> None:
    assert StudyArrays.open(ingest_like(tmp_path)).planes_of(0).shape == (0, 96, 96)


def test_a_folder_that_ingest_did_not_finish_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="run `willis ingest`"):
        StudyArrays.open(tmp_path)


def test_a_study_of_another_shape_is_refused(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, "volumes", (2, *SHAPE), 2) as writer,
        pytest.raises(ShapeError, match="holds uint8"),
    ):
        writer.add(np.zeros((1, *SHAPE), np.uint8))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_decode_undoes_encode_within_half_a_step(sequence: str) -> None:
    span = CODE_RANGES[sequence]
    rng = np.random.default_rng(1)
    values = rng.uniform(span.low, span.high, SHAPE).astype(np.float32)
    brain = rng.random(SHAPE) > 0.3
    back = decode(encode(values, brain, sequence)[None], (sequence,))[0]
    step = (span.high - span.low) / 254
    assert np.abs(back - values)[brain].max() <= step / 2 + 1e-5
    assert (back[~brain] == 0).all()


def test_values_outside_the_range_are_clipped_and_never_background() -> None:
    values = np.array([-99, 99], np.float32).reshape(2, 1, 1)
    assert encode(values, np.ones((2, 1, 1), bool), "dwi").ravel().tolist() == [1, 255]


def test_torch_and_numpy_decode_alike() -> None:
    codes = np.random.default_rng(2).integers(0, 256, (3, 4, *SHAPE), dtype=np.uint8)
    ours = decode(torch.from_numpy(codes), SEQUENCES)
    np.testing.assert_allclose(ours.numpy(), decode(codes, SEQUENCES), atol=1e-6)


def test_channels_must_be_as_many_as_sequences() -> None:
    with pytest.raises(ShapeError, match="must hold 2 channels"):
        decode(np.zeros((3, *SHAPE), np.uint8), ("dwi", "adc"))
