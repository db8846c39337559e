"""Workers that share devices: serving leaves a device to a job of another worker, which waits for that.

All that one of them knows of another is in the database: which job is on which device, and what an engine's
state is. So nothing is held for a worker that has died, and an engine that is started again leaves the device
at once. GPUs are compared by the driver's ids, so that containers with host names of their own share too.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.engine.devices import WorkerDevice
from app.core.engine.state import EngineState
from app.core.jobs import queue
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.storage.outages import log_unless_away

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_WAIT_LOOK_SECONDS = 0.2
# As long as an engine may take to pause, and one more look of its worker at the jobs.
_WAIT_SECONDS = 75.0

# Has the engine on a device, by its name, leave it to a job.
Reserve = Callable[[str, str], AbstractContextManager[bool]]


class HostJobs:
    """Reserves this worker's serving devices for the jobs that other workers run on them, while they run."""

    def __init__(
        self,
        database: Database,
        own_ids: Collection[str],
        devices: Collection[str],
        reserve: Reserve,
        stop: threading.Event,
    ) -> None:
        self._database = database
        self._own_ids = own_ids
        self._devices = devices
        self._reserve = reserve
        self._stop = stop
        self._held: dict[tuple[str, str], ExitStack] = {}

    def run(self) -> None:
        """Look at the jobs once a second, until the worker stops."""
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                self.look()
            except SQLAlchemyError as error:
                log_unless_away(log, "Jobs of other workers can't be looked for now", error)
        for held in self._held.values():
            held.close()

    def look(self) -> None:
        """Reserve devices for jobs that have begun, and no longer for those that have ended."""
        with self._database.snapshot() as session:
            found = {
                (device, job_id)
                for device, job_id in find_device_jobs(session, self._own_ids)
                if device in self._devices
            }
        # First those that have begun: between two jobs on one device its engine does not go on.
        for device, job_id in sorted(found - self._held.keys()):
            log.info("Job %s of another worker has begun on %s", job_id, device)
            held = self._held[device, job_id] = ExitStack()
            held.enter_context(self._reserve(device, job_id))
        for ended in self._held.keys() - found:
            self._held.pop(ended).close()


def find_device_jobs(session: Session, own_ids: Collection[str]) -> list[tuple[str, str]]:
    """Returns the names of the devices on which jobs of other workers run, each with the job's id.

    A job is not among them before the first heartbeat of its worker that names its devices.
    """
    running = {
        job_id: worker_id
        for job_id, worker_id in queue.find_running(session).items()
        if worker_id not in own_ids
    }
    return [
        (workers.name_device(row.id, device), device.job)
        for row in workers.find(session, set(running.values()))
        for device in map(WorkerDevice.model_validate, row.devices)
        if device.job is not None and running.get(device.job) == row.id
    ]


def wait_for_others(
    database: Database,
    settings: Settings,
    stop: threading.Event,
    *,
    job_id: str,
    devices: Collection[str],
    own_ids: Collection[str],
) -> bool | None:
    """Wait until the engines of other workers have left the devices to a job.

    Returns whether they have paused, and do not share a device; None where there are none. `devices` are
    the names of the job's, `own_ids` those of this worker's rows.
    """
    until = time.monotonic() + _WAIT_SECONDS
    while not stop.is_set():
        try:
            states = _find_states(database, settings, devices, own_ids)
        except SQLAlchemyError as error:
            log_unless_away(log, "Engines of other workers can't be looked for now", error)
        else:
            if all(state and job_id in (state.paused_by, state.shares_with) for state in states):
                return all(state and state.paused_by for state in states) if states else None
        if time.monotonic() >= until:
            log.warning("Job %s: an engine has not left its device within %.0f s", job_id, _WAIT_SECONDS)
            return False
        stop.wait(_WAIT_LOOK_SECONDS)
    return False


def _find_states(
    database: Database, settings: Settings, devices: Collection[str], own_ids: Collection[str]
) -> list[EngineState | None]:
    """The states of other workers' engines on these devices; None for one that does not respond."""
    with database.snapshot() as session:
        alive = workers.find_alive(session, lease_seconds=settings.lease_seconds, role="serve")
    states = [
        EngineState.model_validate(worker.engine_state) if worker.engine_state else None
        for worker in alive
        if worker.engine_url and worker.id not in own_ids and _find_device(worker) in devices
    ]
    return [state for state in states if state is None or not state.is_external]


def _find_device(worker: tables.WorkerRow) -> str | None:
    """The name of the device that the worker's engine is on; None where it is unknown."""
    if not worker.device:
        return None
    return workers.name_device(worker.id, WorkerDevice.model_validate(worker.device))
