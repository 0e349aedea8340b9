"""A step's folder appears whole, or what stood there stays as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.file_limit import files_of_at_most
from willis.errors import StepError
from willis.outputs import whole_folder
from willis.params import EvaluateParams, PromoteParams
from willis.settings import Settings
from willis.steps.evaluate import evaluate
from willis.steps.promote import promote


def finished(out: Path, text: str) -> Path:
    """An output of an earlier run."""
    with whole_folder(out, "record.json") as part:
        (part / "record.json").write_text(text)
        (part / "values").mkdir()
        (part / "values" / "1").write_text(text)
    return out


def test_a_finished_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    out = finished(tmp_path / "new" / "out", "first")
    (out / "left over").write_text("x")
    finished(out, "second")
    assert sorted(path.name for path in out.iterdir()) == ["record.json", "values"]
    assert (out / "values" / "1").read_text() == "second"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_taken_even_the_one_that_is_stood_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    finished(Path(), "first")
    assert (tmp_path / "out" / "record.json").read_text() == "first"


def test_a_run_that_fails_leaves_the_one_before_and_nothing_half(tmp_path: Path) -> None:
    out = finished(tmp_path / "out", "first")
    with pytest.raises(ZeroDivisionError), whole_folder(out, "record.json") as part:
        (part / "record.json").write_text("half")
        raise ZeroDivisionError
    assert (out / "record.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    out = finished(tmp_path / "out", "first")
    killed_in_the_second_rename = (
        "import os, sys; from pathlib import Path; from willis.outputs import whole_folder\n"
        "rename = Path.rename\n"
        "Path.rename = lambda a, b: rename(a, b) if a.name == 'out' else os._exit(9)\n"
        "with whole_folder(Path(sys.argv[1]), 'record.json') as part: (part / 'record.json').touch()"
    )
    done = subprocess.run([sys.executable, "-c", killed_in_the_second_rename, out], check=False)
    assert done.returncode == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.old", ".out.part"]
    with pytest.raises(ZeroDivisionError), whole_folder(out, "record.json"):
        assert (out / "record.json").read_text() == "first"
        raise ZeroDivisionError
    assert (out / "values" / "1").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_said_and_leaves_the_one_before(tmp_path: Path) -> None:
    out = finished(tmp_path / "out", "first")
    with (
        pytest.raises(StepError, match=r"writing .*out stopped \(File too large; \d+ MB free\).*--out"),
        whole_folder(out, "record.json") as part,
        files_of_at_most(10_000),
    ):
        (part / "record.json").write_bytes(bytes(20_000))
    assert (out / "record.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_of_the_disk_that_is_not_want_of_space_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "out", "record.json") as part:
        (part / "nowhere" / "x").write_text("")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(StepError, match=r"holds files that this step did not write \(there is no record.json"),
        whole_folder(tmp_path, "record.json"),
    ):
        pytest.fail("the block must not be reached")
    with pytest.raises(StepError, match="is a file"), whole_folder(tmp_path / "thesis.txt", "record.json"):
        pytest.fail("the block must not be reached")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_evaluate_and_promote_refuse_such_a_folder_before_they_work(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    nowhere = tmp_path / "nowhere"
    with pytest.raises(StepError, match=r"there is no evaluation\.json"):
        evaluate(nowhere, nowhere, nowhere, nowhere, tmp_path, EvaluateParams())
    with pytest.raises(StepError, match=r"there is no promotion\.json"):
        promote(nowhere, nowhere, nowhere, nowhere, nowhere, tmp_path, PromoteParams(), Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
