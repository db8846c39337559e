"""Prometheus: counters of this process's requests, and gauges read from the database at each scrape."""

from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.core.engine import workers
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.storage.database import Database

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class RequestMetrics:
    """A registry for each app, so that two apps in a process (tests) do not share counters."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunesmith_requests",
            "Requests answered, by route template.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tunesmith_request_seconds",
            "Time until the answer started, by route template.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_QueueCollector(settings, database))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _QueueCollector(Collector):
    """Gauges that are read from the database at each scrape."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return nothing: otherwise the registry would read the database when it is created."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Jobs by state, age of the queue, live workers by role."""
        with self._database.snapshot() as session:
            by_state = job_records.count_by_state(session)
            oldest = job_records.find_oldest_queued_at(session)
            alive = workers.find_alive(session, lease_seconds=self._settings.lease_seconds)
        gauge = GaugeMetricFamily("tunesmith_jobs", "Jobs by state.", labels=["state"])
        for state, count in by_state.items():
            gauge.add_metric([state], count)
        yield gauge
        age = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
        yield GaugeMetricFamily("tunesmith_queue_age_seconds", "Age of the oldest waiting job.", value=age)
        gauge = GaugeMetricFamily("tunesmith_workers_alive", "Live workers by role.", labels=["role"])
        for role in ("train", "serve"):
            gauge.add_metric([role], sum(role in worker.roles for worker in alive))
        yield gauge
