"""The devices of this host and their engines: which serve, which train, and what the worker reports of them.

Knows no torch. One worker process owns all devices of its host; a child sees those that it may use.
"""

import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import httpx
from pydantic import TypeAdapter

from app.core.engine import base_models, workers
from app.core.engine.devices import WorkerDevice
from app.core.engine.workers import WorkerReport
from app.core.jobs.placement import Host
from app.core.settings import EngineKind, Settings
from app.core.storage.database import Database
from worker.device_sharing import DeviceSharing
from worker.models.files import hub_cache
from worker.planning.device_pool import DevicePool
from worker.processes.engine_process import ENGINE_MODULE, EngineProcess
from worker.processes.gpu_stats import GpuStats
from worker.trackers.runs import find_installed

log = logging.getLogger(__name__)

_DEVICES = TypeAdapter(list[WorkerDevice])
Probe = Callable[[], list[WorkerDevice]]


@dataclass(frozen=True)
class _Serving:
    """An engine, and the id of the worker's row that has its address."""

    id: str
    engine: EngineProcess


class HostDevices:
    """All devices of the host. `on_change` is called when what a device does changes."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        worker_id: str,
        trains: bool,
        serves: bool,
        clusters: bool = False,
        on_change: Callable[[], None],
        stop: threading.Event,
        engine_module: str = ENGINE_MODULE,
        probe: Probe | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._worker_id = worker_id
        self._trains = trains
        self._serves = serves
        self._clusters = clusters and has_ray()
        # The job over several hosts that this worker runs; one at a time.
        self._cluster_job: str | None = None
        self._on_change = on_change
        self._stop = stop
        self._engine_module = engine_module
        self._probe = probe or _probe_devices
        self._devices: list[WorkerDevice] = []
        self._pool = DevicePool([])
        self._stats = GpuStats()
        # By the places of their devices.
        self._engines: dict[int, _Serving] = {}
        # The places of the devices that this worker's engines are on.
        self._serving = range(0)
        self._sharing = self._share()
        # Held from a look at what is free until a job, or an export, has what it was given.
        self.placing = threading.Lock()

    def start(self) -> None:
        """Find the devices, decide which of them serve, and start an engine on each of those."""
        self._devices = self._probe()
        reserved = self._settings.serve_gpus if self._kind == "cuda" and not self._is_external else 0
        only_serving = range(min(reserved, len(self._devices)))
        engines = range(len(only_serving) or 1)
        # An external engine is on none of them. Where this worker does not serve, another one of this host
        # may, on the same devices.
        last = range(0) if self._is_external else engines
        self._serving = last if self._serves else range(0)
        self._pool = DevicePool(
            self._devices,
            serving=self._serving,
            only_serving=only_serving,
            last=last,
            cpu_ranks=self._settings.cpu_ranks,
        )
        for place in engines if self._serves else ():
            engine = EngineProcess(
                _engine_settings(self._settings, place),
                self._on_change,
                module=self._engine_module,
                name=f"engine-{place}" if place else "engine",
            )
            self._engines[place] = _Serving(new_worker_id() if place else self._worker_id, engine)
            # Its process sees this device alone, as the first one.
            device = _describe(self._devices[place:])
            environment = self._pool.environment_of([place]) if self._devices else {}
            engine.start(device | {"index": 0} if device else {}, environment)
        self._sharing = self._share()

    def stop(self) -> None:
        """End the engines."""
        for serving in self._engines.values():
            serving.engine.stop()

    @property
    def names(self) -> str:
        """The names of the devices, for the log."""
        return ", ".join(device.name for device in self._devices) or "no device"

    @property
    def serving_ids(self) -> list[str]:
        """The ids of the workers' rows that have the engines' addresses."""
        return [serving.id for serving in self._engines.values()]

    @property
    def all_engines_listen(self) -> bool:
        """Whether every engine has started; true where there is none."""
        return all(serving.engine.url for serving in self._engines.values())

    @property
    def free(self) -> int:
        """How many devices a job may take now."""
        return self._pool.free

    @property
    def takes_cluster_jobs(self) -> bool:
        """Whether a job over several hosts may begin now."""
        return self._clusters and self._cluster_job is None

    def take(self, job_id: str, count: int) -> None:
        """Give devices to a job; those of one over several hosts are not this worker's."""
        if count == 0:
            self._cluster_job = job_id
        self._pool.take(job_id, count)
        self._on_change()

    def give_back(self, job_id: str) -> None:
        """The job has ended: its devices are free."""
        if job_id == self._cluster_job:
            self._cluster_job = None
        self._pool.give_back(job_id)
        self._on_change()

    @contextmanager
    def idle_gpu(self, export_id: str) -> Iterator[str | None]:
        """Give an export a GPU that nothing else is on, while the context lasts; None where there is none."""
        with self.placing:
            gpu = self._pool.take_idle(export_id) if self._trains else None
        self._on_change()
        try:
            yield gpu
        finally:
            self._pool.give_back_idle(export_id)
            self._on_change()

    def reserve(self, job_id: str) -> AbstractContextManager[bool]:
        """Make room on the job's devices, as the GPU policy says; yields whether the job has all of them."""
        return self._sharing.reserve(job_id)

    def share_with_others(self) -> None:
        """Leave serving devices to the jobs that other workers run on them, until the worker stops."""
        self._sharing.share_with_others()

    def unload(self, adapter_ids: list[str]) -> None:
        """Have the external engine unload adapters that are deleted."""
        for serving in self._engines.values():
            serving.engine.unload(adapter_ids)

    def environment(self, job_id: str) -> dict[str, str]:
        """The environment of a process that sees the job's devices alone."""
        return self._pool.environment(job_id)

    def next_environment(self) -> dict[str, str] | None:
        """The environment that the next job of one device will have; None where that is unknown."""
        return self._pool.next_environment()

    def describe_host(self) -> Host:
        """What is free for jobs now."""
        return Host(
            self._worker_id,
            self._pool.free if self._trains else 0,
            self._pool.total if self._trains else 0,
            base_models.find_names(self._settings),
            {model.name for model in hub_cache.list_downloaded() if model.is_whole},
            self._pool.jobs.union([self._cluster_job] if self._cluster_job else []),
            has_gpu=self._kind == "cuda",
            cluster=self.takes_cluster_jobs,
        )

    def report(self, roles: list[str], problems: list[str]) -> list[WorkerReport]:
        """The state of the worker; each further engine is a worker of its own, which serves."""
        states = {place: one.engine.read_state() for place, one in self._engines.items()}
        paused = [place for place, state in states.items() if state and state.paused_by]
        devices = self._pool.describe(self._stats.read(self._kind), paused)
        # Those that it neither serves nor trains on are another worker's.
        own_places = set(self._serving) | (self._pool.trainable if self._trains else set())
        owned = [device for place, device in enumerate(devices) if place in own_places]
        own = WorkerReport(
            id=self._worker_id,
            roles=roles,
            device=_describe(devices),
            devices=owned,
            free_gpus=self._pool.free if self._trains else 0,
            total_gpus=self._pool.total if self._trains else 0,
            problems=[*problems, *self._find_problems()],
            downloaded=hub_cache.list_downloaded(),
            folders=base_models.find_local(self._settings),
            trackers=find_installed(),
            has_hub_token=hub_cache.has_token(),
        )
        reports = {own.id: own}
        for place, serving in self._engines.items():
            engine = serving.engine
            further = WorkerReport(serving.id, ["serve"], _describe(devices[place:]))
            report = reports.get(serving.id, further)
            reports[serving.id] = replace(
                report,
                engine_url=engine.url,
                engine_token=engine.token,
                engine_state=states[place],
                problems=[*report.problems, *([engine.problem] if engine.problem else [])],
            )
        return list(reports.values())

    def _share(self) -> DeviceSharing:
        return DeviceSharing(
            self._settings,
            self._database,
            self._pool,
            {place: self._engines[place].engine for place in self._serving},
            own_ids=(self._worker_id, *self.serving_ids),
            serves=self._serves,
            stop=self._stop,
        )

    @property
    def _is_external(self) -> bool:
        return self._settings.engine is EngineKind.VLLM

    @property
    def _kind(self) -> str | None:
        return self._devices[0].kind if self._devices else None

    def _find_problems(self) -> list[str]:
        if not self._devices:
            return ["No device could be found: the worker's log says why. No job can train here."]
        if self._settings.ray_address and not has_ray():
            return ["TUNESMITH_RAY_ADDRESS is set, and Ray is not installed: pip install 'tunesmith[ray]'."]
        if self._trains and not self._pool.total:
            return [f"TUNESMITH_SERVE_GPUS leaves none of {len(self._devices)} GPUs to jobs."]
        return []


def has_ray() -> bool:
    """Whether Ray is installed here."""
    return find_spec("ray") is not None


def new_worker_id() -> str:
    """Returns an id for a row of this worker: its host, its process, and a random part."""
    return f"{workers.name_host()}-{os.getpid()}-{secrets.token_hex(3)}"


def _engine_settings(settings: Settings, place: int) -> Settings:
    """The settings of the engine on the device at a place: further engines have the next ports."""
    if place == 0 or not settings.engine_port:
        return settings
    url = httpx.URL(settings.engine_url) if settings.engine_url else None
    moved = str(url.copy_with(port=url.port + place)) if url and url.port else settings.engine_url
    return settings.model_copy(update={"engine_port": settings.engine_port + place, "engine_url": moved})


def _describe(devices: Sequence[WorkerDevice]) -> dict[str, Any]:
    """The first of these devices, as engines and readers of a worker's `device` know it."""
    return devices[0].model_dump(mode="json", exclude={"state", "job"}, exclude_none=True) if devices else {}


def _probe_devices() -> list[WorkerDevice]:
    """Describe the devices, in a short-lived process: torch would take memory here, of the GPUs too."""
    probe = subprocess.run([sys.executable, "-m", "worker.models.device"], capture_output=True, check=False)
    if probe.returncode != 0:
        log.error("No device could be found: %s", probe.stderr.decode(errors="replace")[-1000:])
        return []
    return _DEVICES.validate_json(probe.stdout)
