"""The series that are read from the database at each scrape: queues, workers, devices."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.engine.devices import WorkerDevice
from app.core.evaluations import records as evaluation_records
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.storage.tables import QueuedRow
from app.core.work import turns

_QUEUES: Mapping[str, type[QueuedRow]] = {
    "job": tables.JobRow,
    "evaluation": tables.EvaluationRow,
    "export": tables.ExportRow,
}
_ROLES = ("train", "serve")
_USUAL_PRIORITY = 0


class DatabaseSeries(Collector):
    """Gauges of what all processes share: every API process says the same."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Work by state, what waits by kind and priority, live workers by role, and their devices."""
        with self._database.snapshot() as session:
            alive = workers.find_alive(session, lease_seconds=self._settings.lease_seconds)
            yield _by_label("jobs", "Jobs by state.", "state", job_records.count_by_state(session).items())
            counts = evaluation_records.count_by_state(session)
            yield _by_label("evaluations", "Evaluations by state.", "state", counts.items())
            yield from _describe_queues(session)
        roles = {role: sum(role in worker.roles for worker in alive) for role in _ROLES}
        yield _by_label("workers_alive", "Live workers by role.", "role", roles.items())
        yield from _describe_devices(alive)


def _describe_queues(session: Session) -> Iterator[GaugeMetricFamily]:
    now = datetime.now(UTC)
    ages: dict[str, float] = {}
    waiting = GaugeMetricFamily(
        "tunesmith_queue_waiting", "What waits, by kind and priority.", labels=["kind", "priority"]
    )
    for kind, table in _QUEUES.items():
        oldest = turns.find_oldest(session, table)
        ages[kind] = (now - oldest).total_seconds() if oldest else 0.0
        for priority, count in ({_USUAL_PRIORITY: 0} | turns.count_waiting(session, table)).items():
            waiting.add_metric([kind, str(priority)], count)
    yield waiting
    yield _by_label("queue_oldest_seconds", "Age of the oldest that waits, by kind.", "kind", ages.items())
    help_text = "Age of the oldest waiting job."
    yield GaugeMetricFamily("tunesmith_queue_age_seconds", help_text, value=ages["job"])


def _describe_devices(alive: Iterable[tables.WorkerRow]) -> Iterator[GaugeMetricFamily]:
    gauges = {
        name: GaugeMetricFamily(f"tunesmith_device_{name}", help_text, labels=["worker", "device", "name"])
        for name, help_text in (
            ("memory_bytes", "All memory of a device."),
            ("memory_used_bytes", "Memory of a device that is in use, by whichever process."),
            ("utilization_ratio", "How busy a device is, from 0 to 1."),
            ("temperature_celsius", "Temperature of a device."),
        )
    }
    for worker in alive:
        for device in map(WorkerDevice.model_validate, worker.devices):
            labels = [worker.id, f"{device.kind}:{device.index}", device.name]
            for name, value in _measure(device).items():
                if value is not None:
                    gauges[name].add_metric(labels, value)
    yield from gauges.values()


def _measure(device: WorkerDevice) -> dict[str, float | None]:
    """What is known of a device, by the name of the series; None: unknown."""
    free, busy = device.free_bytes, device.utilization_percent
    return {
        "memory_bytes": device.memory_bytes,
        "memory_used_bytes": None if free is None else device.memory_bytes - free,
        "utilization_ratio": None if busy is None else busy / 100,
        "temperature_celsius": device.temperature_celsius,
    }


def _by_label(
    name: str, help_text: str, label: str, values: Iterable[tuple[str, float]]
) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"tunesmith_{name}", help_text, labels=[label])
    for key, value in values:
        gauge.add_metric([key], value)
    return gauge
