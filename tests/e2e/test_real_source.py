"""`make demo` on a tree of one's own: what it lacks is said in one sentence, and nothing is left running."""

from pathlib import Path

import pytest

from tests.fixtures.demo import run_demo
from tests.fixtures.processes import left_behind

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_one_real_patient_without_an_outcome_cannot_train_and_the_demo_says_so(
    data_dir: Path, tmp_path: Path
) -> None:
    root = tmp_path / "demo"
    done = run_demo(root, Path("params.yaml"), 8000, "--data", f"bids:{data_dir / 'isles22'}", check=False)
    said = " ".join(done.stdout.split())
    assert done.returncode == 2
    assert "ingest failed: CohortError: none of 1 patients has mrs_90d" in said
    assert "ingest.require_outcome: false prepares studies alone" in said and "the whole log:" in said
    assert "Traceback" not in said
    assert not (root / "summary.json").exists()
    assert left_behind(root) == []
