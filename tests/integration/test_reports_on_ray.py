"""Reports by the workers of a real Ray cluster, from several servers."""

from pathlib import Path

import pandas as pd
import pytest

from infra.local.ray_head import RayHead
from tests.answering_server import answering, fails, says
from tests.small_ingest import write_small_ingest
from willis.params import ReportParams
from willis.reports.schema import Findings
from willis.settings import Settings
from willis.steps.report import report

pytestmark = pytest.mark.integration
NUM_STUDIES = 10
PARAMS = ReportParams(writer="llm", model="m", num_workers=2, concurrency=2, num_retries=0)


def test_workers_share_the_servers_and_nothing_is_asked_for_twice(ray_head: RayHead, tmp_path: Path) -> None:
    ingest = write_small_ingest(tmp_path / "ingest", NUM_STUDIES)
    with answering(says(Findings())) as one, answering(says(Findings())) as other:
        settings = Settings(
            ray_address=ray_head.address,
            report_url=f"{one.url},{other.url}",
            report_store=tmp_path / "reports.sqlite",
        )
        first = report(ingest, tmp_path / "out", PARAMS, settings)
        asked = len(one.requests), len(other.requests)
        again = report(ingest, tmp_path / "again", PARAMS, settings)
        assert (len(one.requests), len(other.requests)) == asked
    assert sum(asked) == NUM_STUDIES and min(asked) > 0
    assert (first.num_written, first.num_reports) == (NUM_STUDIES, NUM_STUDIES)
    assert (again.num_written, again.num_reports) == (0, NUM_STUDIES)


def test_what_a_server_refuses_is_flagged_by_its_reason_and_asked_for_again(
    ray_head: RayHead, tmp_path: Path
) -> None:
    ingest = write_small_ingest(tmp_path / "ingest", NUM_STUDIES)
    store = tmp_path / "reports.sqlite"
    with answering(*[fails(500, "out of memory")] * 4, says(Findings())) as server:
        settings = Settings(ray_address=ray_head.address, report_url=server.url, report_store=store)
        summary = report(ingest, tmp_path / "out", PARAMS, settings)
        again = report(ingest, tmp_path / "again", PARAMS, settings)
    written = pd.read_parquet(tmp_path / "out" / "reports.parquet")
    flagged = written[written["flagged"]]
    assert len(flagged) == summary.num_flagged == 4
    assert flagged["reason"].str.contains("answered 500").all()
    assert (again.num_written, again.num_reports) == (4, NUM_STUDIES)
