"""Stages are recognised by what they read, and files are there whole or not at all."""

from pathlib import Path

import pytest

from infra.local.demo import default_root
from infra.local.stages import StageRun, done, folder_made, key_of, remember, write_whole


def test_a_result_is_found_under_its_key_alone(tmp_path: Path) -> None:
    record = tmp_path / "stream.json"
    remember(record, "key-1", StageRun(seconds=1.5, cached=False))
    assert done(record, "key-1", StageRun) == StageRun(seconds=1.5, cached=False)
    assert done(record, "key-2", StageRun) is None


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ("synthetic", "build/demo"),
        (
            "soop:../StrokeOutcomeOptimizationProjectDemo",
            "build/demo-soop-StrokeOutcomeOptimizationProjectDemo",
        ),
        ("bids:/data/isles22/", "build/demo-bids-isles22"),
    ],
)
def test_each_source_has_a_folder_and_so_a_registry_of_its_own(
    data: str, folder: str, repository: Path
) -> None:
    assert default_root(data) == repository / folder


def test_a_stage_that_never_ran_has_no_result(tmp_path: Path) -> None:
    assert done(tmp_path / "absent.json", "key", StageRun) is None


def test_a_folder_is_made_once_per_key(tmp_path: Path) -> None:
    folder, made = tmp_path / "cohort", []

    def make() -> None:
        made.append(1)
        folder.mkdir()

    assert [folder_made(folder, key, make) for key in ("a", "a", "b")] == [False, True, False]
    assert len(made) == 2


def test_a_folder_whose_making_failed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"

    def fail() -> None:
        folder.mkdir()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        folder_made(folder, "a", fail)
    assert folder_made(folder, "a", folder.mkdir) is False


def test_keys_differ_when_any_part_differs() -> None:
    assert key_of({"a": 1}, "x") == key_of({"a": 1}, "x")
    assert key_of({"a": 1}, "x") != key_of({"a": 2}, "x")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert [item.name for item in tmp_path.iterdir()] == ["summary.json"]
