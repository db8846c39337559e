"""Which devices of a host do what: those that jobs train on, and those that serve. Knows no torch."""

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from app.core.engine.devices import DeviceState, WorkerDevice


class DevicePool:
    """The devices of one worker, by their places in its list. May be used from several threads.

    Engines run on those at `serving`. Jobs never get those at `only_serving`, and get those at `last`, or
    that serve, after all others. A CPU counts as `cpu_ranks` devices, which one job has at a time. An export
    may have a GPU that nothing else is on, which is then no job's until it is given back.
    """

    def __init__(
        self,
        devices: Sequence[WorkerDevice],
        *,
        serving: Collection[int] = (),
        only_serving: Collection[int] = (),
        last: Collection[int] = (),
        cpu_ranks: int = 1,
    ) -> None:
        self.devices = list(devices)
        self._serving = set(serving)
        self._only_serving = set(only_serving)
        self._last = self._serving.union(last)
        self._cpu_ranks = cpu_ranks
        self._jobs: dict[int, str] = {}  # by the device's place
        self._exports: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def trainable(self) -> set[int]:
        """The places of the devices that jobs may have."""
        return set(range(len(self.devices))) - self._only_serving

    @property
    def has_gpus(self) -> bool:
        """Whether the devices are GPUs."""
        return any(device.kind == "cuda" for device in self.devices)

    @property
    def total(self) -> int:
        """How many devices a job may have at most."""
        return self._count(self.trainable)

    @property
    def free(self) -> int:
        """How many devices a job may take now."""
        with self._lock:
            return self._count(self._find_free())

    @property
    def jobs(self) -> set[str]:
        """The jobs that have devices now."""
        with self._lock:
            return set(self._jobs.values())

    def take(self, job_id: str, count: int) -> None:
        """Give devices to a job; `free` says how many there are."""
        with self._lock:
            free = self._find_free()
            assert count <= self._count(free), (job_id, count, free)
            for place in free[:count]:
                self._jobs[place] = job_id

    def give_back(self, job_id: str) -> None:
        """The job has ended: its devices are free."""
        with self._lock:
            self._jobs = {place: job for place, job in self._jobs.items() if job != job_id}

    def take_idle(self, export_id: str) -> str | None:
        """Give an export a GPU on which nothing trains and no engine is.

        Returns it as CUDA_VISIBLE_DEVICES takes it; None where there is no such GPU.
        """
        with self._lock:
            places = [place for place in self._find_free() if place not in self._last]
            found = next((place for place in places if self.devices[place].kind == "cuda"), None)
            if found is None:
                return None
            self._exports[found] = export_id
            return _name(self.devices[found])

    def give_back_idle(self, export_id: str) -> None:
        """The export needs its GPU no more: it is free."""
        with self._lock:
            self._exports = {place: one for place, one in self._exports.items() if one != export_id}

    def find_devices(self, job_id: str) -> list[WorkerDevice]:
        """Returns the job's devices."""
        with self._lock:
            return [self.devices[place] for place, job in sorted(self._jobs.items()) if job == job_id]

    def find_serving(self, job_id: str) -> list[int]:
        """Returns the places of the job's devices that also serve."""
        with self._lock:
            return [place for place, job in self._jobs.items() if job == job_id and place in self._serving]

    def environment(self, job_id: str) -> dict[str, str]:
        """Returns the environment of a process that sees the job's devices alone."""
        with self._lock:
            return self.environment_of([place for place, job in self._jobs.items() if job == job_id])

    def next_environment(self) -> dict[str, str] | None:
        """Returns the environment that the next job of one device will have; None where that is unknown."""
        if len(self.devices) < 2:
            return {}
        with self._lock:
            free = self._find_free()
        return self.environment_of(free[:1]) if free else None

    def environment_of(self, places: Sequence[int]) -> dict[str, str]:
        """Returns the environment of a process that sees these devices alone: on a host of one, no change."""
        if len(self.devices) < 2:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(_name(self.devices[place]) for place in sorted(places))}

    def describe(
        self, figures: Mapping[str | None, Mapping[str, Any]], paused: Collection[int] = ()
    ) -> list[WorkerDevice]:
        """Returns all devices with what they do; serving pauses on those at the places `paused`."""
        with self._lock:
            jobs, exports = dict(self._jobs), set(self._exports)
        return [
            device.model_copy(
                update={
                    "state": DeviceState.EXPORTING
                    if place in exports
                    else _name_state(place in jobs, place in self._serving and place not in paused),
                    "job": jobs.get(place),
                    **figures.get(device.uuid, {}),
                }
            )
            for place, device in enumerate(self.devices)
        ]

    def _count(self, places: Collection[int]) -> int:
        return sum(self._cpu_ranks if self.devices[place].kind == "cpu" else 1 for place in places)

    def _find_free(self) -> list[int]:
        taken = self._jobs.keys() | self._exports.keys()
        return sorted(self.trainable - taken, key=lambda place: (place in self._last, place))


def _name(device: WorkerDevice) -> str:
    return device.uuid or str(device.index)


def _name_state(trains: bool, serves: bool) -> DeviceState:
    if trains:
        return DeviceState.SHARED if serves else DeviceState.TRAINING
    return DeviceState.SERVING if serves else DeviceState.FREE
