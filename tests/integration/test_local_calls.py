"""What a stream of the demo tells the endpoint of its patients."""

from pathlib import Path

import pytest

from infra.local.calls import stream_calls
from infra.local.stream import form_of
from serving.schema import PredictionRequest
from willis.cohort.synthetic import synthesise
from willis.params import CohortParams, IngestParams

pytestmark = pytest.mark.integration


def test_an_outcome_at_another_time_is_not_told_as_one_at_90_days(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    synthesise(cohort, CohortParams(num_patients=3, seed=3, num_workers=1), purpose="stream")
    at_90_days = stream_calls(cohort, IngestParams(), tmp_path)
    assert [call.mrs_90d is not None for call in at_90_days] == [True] * 3
    discharge = IngestParams(outcome_column="mrs", columns={"mrs_90d": "mrs"})
    others = stream_calls(cohort, discharge, tmp_path)
    assert [call.mrs_90d for call in others] == [None] * 3
    assert [call.clinical for call in others] == [call.clinical for call in at_90_days]


def test_the_endpoint_reads_in_a_request_the_table_that_the_call_holds(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    synthesise(cohort, CohortParams(num_patients=3, seed=3, num_workers=1), purpose="stream")
    for call in stream_calls(cohort, IngestParams(), tmp_path):
        asked = PredictionRequest.model_validate_json(form_of(call))
        assert call.clinical is not None
        assert (asked.clinical, asked.scanner, asked.space) == (call.clinical, call.scanner, "mni152")
