"""What a run costs is measured over all its processes."""

import os
import subprocess
import sys
from pathlib import Path

from infra.local.cost import metered
from infra.local.processes import MARK

HOLD_200_MB = "held = bytearray(200 * 2**20); print('held', flush=True); input()"


def test_memory_of_a_marked_process_counts_and_that_of_another_does_not(tmp_path: Path) -> None:
    with metered(tmp_path) as meter:
        before = meter.read().peak_memory_mb
        for mark, grown in ((str(tmp_path / "other"), False), (str(tmp_path), True)):
            child = subprocess.Popen(
                [sys.executable, "-c", HOLD_200_MB],
                env=os.environ | {MARK: mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert child.stdout is not None and child.stdout.readline() == b"held\n"
            assert (meter.read().peak_memory_mb - before > 190) is grown
            child.communicate(b"\n")
        assert meter.read().peak_memory_mb - before > 190, "the peak stays when the process is gone"


def test_a_file_with_two_names_counts_once_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(3 * 2**20))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    with metered(tmp_path) as meter:
        assert meter.read().disk_mb == 3
