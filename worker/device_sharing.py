"""Devices on which both jobs and engines run: who leaves what to whom, as the GPU policy says."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from app.core.engine import workers
from app.core.engine.devices import WorkerDevice
from app.core.engine.preflight import PreflightRequest
from app.core.settings import Settings
from app.core.storage.database import Database
from worker.planning import gpu_sharing
from worker.planning.device_pool import DevicePool
from worker.planning.gpu_sharing import SharedEngine
from worker.runners.host_jobs import HostJobs, wait_for_others


class DeviceSharing:
    """Reserves devices for this worker's jobs, and this worker's engines' devices for jobs of other workers.

    `engines` are those on devices that jobs may use, by the devices' places; `own_ids` are the ids of this
    worker's rows.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        pool: DevicePool,
        engines: Mapping[int, SharedEngine],
        *,
        own_ids: Sequence[str],
        serves: bool,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._database = database
        self._pool = pool
        self._engines = engines
        self._own_ids = own_ids
        self._serves = serves
        self._stop = stop

    @contextmanager
    def reserve(self, job_id: str) -> Iterator[bool]:
        """Reserve the job's devices while the context lasts; yields whether the job has all of them."""
        with ExitStack() as stack:
            are_paused = [
                stack.enter_context(self._leave(place, job_id)) for place in self._pool.find_serving(job_id)
            ]
            others = self._wait_for_others(job_id)
            # Where this worker does not serve, another one that does may start while the job runs.
            yield all(are_paused) and (self._serves if others is None else others)

    def share_with_others(self) -> None:
        """Leave devices to the jobs that other workers run on them, until the worker stops."""
        devices = enumerate(self._pool.devices)
        places = {self._name(device): place for place, device in devices if place in self._engines}
        HostJobs(
            self._database,
            self._own_ids,
            places,
            lambda device, job_id: self._leave(places[device], job_id),
            self._stop,
        ).run()

    @contextmanager
    def _leave(self, place: int, job_id: str) -> Iterator[bool]:
        """Have the engine on a device leave it to a job; yields whether serving pauses meanwhile."""
        with gpu_sharing.reserve_device(
            self._engines[place],
            job_id,
            lambda: self._describe(job_id),
            policy=self._settings.gpu_policy,
            is_gpu=self._pool.has_gpus,
        ) as is_paused:
            yield is_paused

    def _wait_for_others(self, job_id: str) -> bool | None:
        """Wait until engines of other workers have left the job's devices; None where there are none."""
        if not gpu_sharing.must_leave(self._settings.gpu_policy, is_gpu=self._pool.has_gpus):
            return None
        devices = {self._name(device) for device in self._pool.find_devices(job_id)}
        return wait_for_others(
            self._database, self._settings, self._stop, job_id=job_id, devices=devices, own_ids=self._own_ids
        )

    def _name(self, device: WorkerDevice) -> str:
        return workers.name_device(self._own_ids[0], device)

    def _describe(self, job_id: str) -> PreflightRequest:
        with self._database.snapshot() as session:
            return gpu_sharing.find_request(session, job_id)
