"""What the endpoint counts, for Prometheus.

Replicas are processes; each writes its numbers to files in one folder (prometheus-client's multiprocess
mode, switched on by PROMETHEUS_MULTIPROC_DIR, which `deploy` sets), so that any replica answers for all of
its node.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import Scope

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30)


class Metrics:
    """Counters of one process."""

    def __init__(self) -> None:
        if _counts_in_files():
            Path(os.environ[_SHARED]).mkdir(parents=True, exist_ok=True)
        own = CollectorRegistry()
        self._own, self._num_in_flight = own, 0
        self._requests = Counter(
            "willis_requests", "Requests answered.", ["route", "method", "status"], registry=own
        )
        self._seconds = Histogram(
            "willis_request_seconds", "From first byte to answer.", ["route"], registry=own, buckets=_SECONDS
        )
        self._stages = Histogram(
            "willis_stage_seconds", "Parts of a prediction.", ["stage"], registry=own, buckets=_SECONDS
        )
        self._predictions = Counter(
            "willis_predictions", "Predictions in the log.", ["bundle_version", "modalities"], registry=own
        )
        self._no_report = Counter(
            "willis_report_failures", "Predictions without text because the writer failed.", registry=own
        )
        self._outcomes = Counter("willis_outcomes", "Outcomes reported.", ["result"], registry=own)
        self._in_flight = Gauge(
            "willis_predictions_in_flight", "Being worked on.", registry=own, multiprocess_mode="livesum"
        )

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request under its route's template, so that ids do not become labels."""
        route = getattr(scope.get("route"), "path", "unknown")
        self._requests.labels(route, scope["method"], str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def prediction(self, bundle_version: str, modalities: tuple[str, ...], report_failed: bool) -> None:
        """Count one logged prediction."""
        self._predictions.labels(bundle_version, "+".join(modalities)).inc()
        if report_failed:
            self._no_report.inc()

    def outcome(self, result: str) -> None:
        """Count one reported outcome."""
        self._outcomes.labels(result).inc()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one part of a prediction."""
        start = perf_counter()
        try:
            yield
        finally:
            self._stages.labels(name).observe(perf_counter() - start)

    @property
    def num_in_flight(self) -> int:
        """Predictions that this process works on."""
        return self._num_in_flight

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a prediction as being worked on."""
        self._num_in_flight += 1
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()
            self._num_in_flight -= 1

    def exposition(self, watched: Path | None = None) -> bytes:
        """Return the numbers of every replica on this node in Prometheus's text format.

        Args:
            watched: the gauges that `monitor` left for scraping; appended when they are there.
        """
        return self._counted() + (watched.read_bytes() if watched and watched.is_file() else b"")

    def _counted(self) -> bytes:
        if not _counts_in_files():
            return generate_latest(self._own)
        joined = CollectorRegistry()
        MultiProcessCollector(joined)
        return generate_latest(joined)


def _counts_in_files() -> bool:
    """Ask prometheus-client itself: it decides once, and Feast sets the variable whenever it is imported."""
    return values.ValueClass is not values.MutexValue
