"""What the endpoint counts."""

import os
import subprocess
import sys
from pathlib import Path

COUNT_THEN_IMPORT_FEAST = """
from serving.metrics import Metrics
metrics = Metrics()
import feast.metrics
metrics.prediction("0123456789abcdef", ("image", "table"), report_failed=True)
print(metrics.exposition().decode())
"""


def test_counts_are_told_in_a_process_that_imports_feast_later(repository: Path) -> None:
    """Feast sets PROMETHEUS_MULTIPROC_DIR when it is imported, too late for counters that exist already."""
    clean = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    told = subprocess.run(
        [sys.executable, "-c", COUNT_THEN_IMPORT_FEAST],
        cwd=repository, env=clean, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert 'willis_predictions_total{bundle_version="0123456789abcdef",modalities="image+table"} 1.0' in told
    assert "willis_report_failures_total 1.0" in told
