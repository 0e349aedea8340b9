"""The endpoint over a real feature store and a real database that goes away; and forgetting a patient."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from sqlalchemy import create_engine, make_url

from tests.served import CLINICAL, LocalEndpoint, local_endpoint, test_settings
from willis.forget import forget, purge
from willis.settings import Settings
from willis.stores import features

pytestmark = pytest.mark.integration

TTL = timedelta(days=30)


def call(served: LocalEndpoint, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        return await served.client.request(method, path, **options)

    return asyncio.run(send())


def store_patients(settings: Settings, admitted: dict[str, datetime]) -> None:
    """Put patients of 71 years into the feature store, admitted when the test says."""
    views = features._definitions(settings, TTL)
    tables = {}
    for name in features.VIEWS:
        rows = pd.DataFrame({"patient_id": list(admitted)})
        rows["event_timestamp"] = pd.to_datetime(pd.Series(list(admitted.values())), utc=True)
        for field in getattr(views, name).features:
            rows[field.name] = None if str(field.dtype) == "String" else float("nan")
        tables[name] = rows
    tables["clinical"]["age"], tables["clinical"]["nihss"] = 71.0, 9.0
    features.write_rows(tables, TTL, settings)
    features.materialise(settings)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[LocalEndpoint]:
    root = tmp_path_factory.mktemp("served")
    settings = test_settings(
        root, feature_repo=repository / "feature_repo", report_store=root / "reports.sqlite"
    )
    now = datetime.now(UTC)
    admitted = {"sub-0001": now - timedelta(hours=2), "sub-0002": now - timedelta(days=40)}
    store_patients(settings, admitted | {"sub-gone": now - timedelta(hours=3)})
    with local_endpoint(root, settings=settings) as endpoint:
        yield endpoint


def test_a_patient_id_brings_the_table_of_the_feature_store(served: LocalEndpoint) -> None:
    by_id = call(served, "POST", "/v1/predictions", json={"patient_id": "sub-0001"})
    assert by_id.status_code == 201, by_id.text
    assert by_id.json()["modalities_used"] == ["table"]
    sent = call(served, "POST", "/v1/predictions", json={"clinical": {"age": 71, "nihss": 9}})
    assert by_id.json()["probability"] == pytest.approx(sent.json()["probability"], abs=1e-7)
    found = served.endpoint.log.get(by_id.json()["prediction_id"])
    assert found is not None and found.row.table["age"] == 71
    known_since = datetime.fromisoformat(found.row.feature_times["clinical"])
    assert timedelta(hours=1) < datetime.now(UTC) - known_since < timedelta(hours=3)


@pytest.mark.parametrize(("patient_id", "says"), [("sub-0002", "days old"), ("sub-9999", "no row")])
def test_features_that_are_stale_or_absent_are_refused_and_nothing_is_logged(
    served: LocalEndpoint, patient_id: str, says: str
) -> None:
    before = served.endpoint.log.count()
    answer = call(served, "POST", "/v1/predictions", json={"patient_id": patient_id})
    assert answer.status_code == 409, answer.text
    assert answer.json()["type"] == "urn:willis:problem:stale-features" and says in answer.json()["detail"]
    assert served.endpoint.log.count() == before


def test_a_table_that_is_sent_goes_before_the_stored_one(served: LocalEndpoint) -> None:
    answer = call(served, "POST", "/v1/predictions", json={"patient_id": "sub-0002", "clinical": CLINICAL})
    assert answer.status_code == 201


def test_a_forgotten_patient_is_gone_from_log_features_and_bundles(served: LocalEndpoint) -> None:
    for patient_id in ("sub-gone", "gone", "sub-0001"):
        asked = {"patient_id": patient_id, "clinical": CLINICAL}
        assert call(served, "POST", "/v1/predictions", json=asked).status_code == 201
    found = forget("gone", served.settings)
    assert (found.num_predictions, found.num_feature_rows, found.num_bundles) == (2, 3, 0)
    assert forget("sub-seen", served.settings).num_bundles == 1
    again = forget("gone", served.settings)
    assert (again.num_predictions, again.num_feature_rows) == (0, 0)
    assert call(served, "POST", "/v1/predictions", json={"patient_id": "sub-gone"}).status_code == 409
    assert call(served, "POST", "/v1/predictions", json={"patient_id": "sub-0001"}).status_code == 201


def test_retention_is_the_settings_own(served: LocalEndpoint) -> None:
    before = served.endpoint.log.count()
    assert purge(served.settings).num_predictions == 0
    later = datetime.now(UTC) + timedelta(days=served.settings.retention_days + 1)
    assert purge(served.settings, now=later).num_predictions == before > 0
    assert served.endpoint.log.count() == 0


def test_a_database_that_goes_away_lets_no_answer_leave(
    tmp_path: Path, postgres_server: Callable[[], str]
) -> None:
    url = postgres_server()
    name = make_url(url).database or ""
    with local_endpoint(tmp_path, settings=test_settings(tmp_path, database_url=url)) as served:
        assert call(served, "POST", "/v1/predictions", json={"clinical": CLINICAL}).status_code == 201
        admin = create_engine(postgres_server(), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()
        for answer in (
            call(served, "POST", "/v1/predictions", json={"clinical": CLINICAL}),
            call(served, "GET", "/v1/predictions/some-id"),
            call(served, "POST", "/v1/outcomes", json={"prediction_id": "x", "mrs_90d": 1}),
            call(served, "GET", "/healthz"),
        ):
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.headers["content-type"] == "application/problem+json"
            assert "probability" not in answer.text and name not in answer.text
