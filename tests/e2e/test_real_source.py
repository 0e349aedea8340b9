"""`make demo` on real patients: the same circle where it can be walked, one sentence where it cannot."""

import json
from pathlib import Path

import pytest

from infra.local.processes import free_port
from tests.fixtures.demo import SMALL, run_demo
from tests.fixtures.processes import left_behind
from tests.fixtures.soop import NUM_LABELLED, NUM_OTHERS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_the_circle_closes_on_real_patients_and_says_what_they_cannot_have(
    some_soop: Path, tmp_path: Path
) -> None:
    root, params = tmp_path / "demo", tmp_path / "params.yaml"
    params.write_text(SMALL.replace("epochs: 4", "epochs: 2").replace("writer: llm", "writer: facts"))
    run_demo(root, params, free_port(), "--data", f"soop:{some_soop}")
    summary = json.loads((root / "summary.json").read_text())
    assert summary["cohort"]["num_patients"] == NUM_LABELLED + NUM_OTHERS
    evaluation = summary["evaluation"]
    assert evaluation["ceiling"] is None and evaluation["baselines"]["ASTRAL"] is None
    assert summary["monitoring"]["new_scanner"] is None
    assert {"ceiling", "new_scanner"} <= set(summary["absent"])
    assert summary["serving"]["num_predictions"] > 0 and summary["serving"]["num_failed"] == 0
    page = (root / "index.html").read_text()
    assert "Real patients" in page and "Rankin score 3-6 (registry, read as the one at discharge)" in page
    assert left_behind(root) == []


def test_one_real_patient_without_an_outcome_cannot_train_and_the_demo_says_so(
    data_dir: Path, repository: Path, tmp_path: Path
) -> None:
    root = tmp_path / "demo"
    params = repository / "params.yaml"
    done = run_demo(root, params, free_port(), "--data", f"bids:{data_dir / 'isles22'}", check=False)
    said = " ".join(done.stdout.split())
    assert done.returncode == 2
    assert "ingest failed: CohortError: none of 1 patients has mrs_90d" in said
    assert "ingest.require_outcome: false prepares studies alone" in said and "the whole log:" in said
    assert "Traceback" not in said
    assert not (root / "summary.json").exists()
    assert left_behind(root) == []
