"""The command: errors are messages for people, with an exit code for machines."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.file_limit import files_of_at_most
from tests.small_ingest import write_small_ingest


def willis(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would, in a folder."""
    command = [sys.executable, "-c", "from willis.cli import main; main()", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_a_typo_in_params_yaml_is_told_with_the_nearest_key_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("ingest:\n  splits: {trian: 0.6}\n  num_worker: 2\nevalute: {}\n")
    done = willis("ingest", "--cohort", "cohort", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for typo, key, place in (
        ("trian", "train", "ingest.splits.trian"),
        ("num_worker", "num_workers", "ingest.num_worker"),
        ("evalute", "evaluate", "evalute"),
    ):
        assert f"'{typo}' is not a known key; did you mean '{key}'?" in done.stderr
        assert f"params.yaml: {place})" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_full_disk_is_a_message_and_leaves_the_output_before(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("report: {writer: none}\n")
    words = ("report", "--ingest", write_small_ingest(tmp_path / "ingest"), "--out", "out")
    assert willis(*words, cwd=tmp_path).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with files_of_at_most(2_000):
        done = willis(*words, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "free some space and run the same command again" in done.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name in before}
    assert after == before
    assert willis(*words, cwd=tmp_path).returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)
    assert len(pd.read_parquet(tmp_path / "out" / "reports.parquet")) == 12


def test_brackets_in_a_message_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}\n")
    done = willis("ingest", "--cohort", f"[/bold]{os.sep}[red]", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and "CohortError: [/bold]/[red] is not a folder" in done.stderr
