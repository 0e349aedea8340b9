import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from willis.cohort.ceiling import ceilings
from willis.cohort.outcome import Preset
from willis.cohort.synthetic import synthesise
from willis.params import CohortParams

pytestmark = pytest.mark.integration

PARAMS = CohortParams(num_patients=14, seed=9, num_workers=2)
_SCRIPT = """
import sys
from collections.abc import Callable
from pathlib import Path
from willis.cohort.synthetic import synthesise
from willis.params import CohortParams
if __name__ == "__main__":
    params = CohortParams(num_patients=14, seed=9, num_workers=2)
    print(synthesise(Path(sys.argv[1]), params, purpose="stream").num_patients)
"""


def test_a_killed_run_is_taken_up_and_ends_in_the_same_bytes_by_any_number_of_workers(tmp_path: Path) -> None:
    script = tmp_path / "make.py"
    script.write_text(_SCRIPT)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    partial = tmp_path / ".killed.partial"
    run = subprocess.Popen([sys.executable, str(script), str(killed)], env=_environment())
    _until(lambda: len(list(partial.glob("sub-*"))) >= 3 or run.poll() is not None, 400)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    _until(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), 120)
    assert not killed.exists()
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("sub-*/*/*.nii.gz")}
    assert kept

    subprocess.run([sys.executable, str(script), str(killed)], env=_environment(), check=True)
    synthesise(whole, PARAMS.model_copy(update={"num_workers": 1}), purpose="stream")
    assert _bytes(killed) == _bytes(whole)
    for path, written in kept.items():
        assert (killed / path.relative_to(partial)).stat().st_mtime_ns == written
    assert not partial.exists()


@pytest.mark.parametrize(("preset", "least_gap"), [("published", 0.0), ("interacting", 0.02)])
def test_the_ceilings_agree_both_ways_and_keep_their_distances(preset: Preset, least_gap: float) -> None:
    found = ceilings(preset, num_draws=120_000)
    assert found.agreement <= 0.005
    assert 0.30 <= found.prevalence <= 0.40
    assert found.full - max(found.image, found.table) >= 0.03
    assert found.full - found.additive >= least_gap


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def _until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
