"""A training process that is started before its job, so that a job need not wait for imports.

Knows nothing of jobs, and no torch. May be used from several threads.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from app.core.settings import Settings
from worker.processes.child_process import ChildProcess

log = logging.getLogger(__name__)

TRAINING_MODULE = "worker.training.run"
DRIVER_MODULE = "worker.training.hosts.driver"  # of jobs over several hosts
LAUNCHER_MODULE = "worker.training.ranks.launcher"  # of jobs over several devices
_PREFIX = "standby-"


class PrewarmedTrainer:
    """Starts training processes; at most one is prewarmed: it has imported all and waits for a request."""

    def __init__(self, settings: Settings, worker_id: str, *, module: str = TRAINING_MODULE) -> None:
        self._module = module
        self._log_path = _log_path(settings, worker_id)
        self._is_wanted = settings.training_standby
        self._is_due = self._is_wanted
        self._waiting: ChildProcess | None = None
        self._environment: dict[str, str] = {}
        self._lock = threading.Lock()

    def prepare(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the process for the next job, in this environment, once for each job.

        A process that has died meanwhile is not replaced: what it died of, an import or a lack of memory, may
        kill its successor too.
        """
        with self._lock:
            if not self._is_due:
                return
            self._is_due = False
            try:
                self._log_path.unlink(missing_ok=True)
                self._waiting = ChildProcess(self._module, None, self._log_path, environment=environment)
                self._environment = dict(environment or {})
            except OSError as error:
                log.warning("No process waits for the next job: %s", error)

    def start(
        self, request: BaseModel, log_path: Path, *, environment: Mapping[str, str] | None = None
    ) -> ChildProcess:
        """A process with this request: the prewarmed one, or else a new one. Raises OSError.

        A process sees the devices of the environment in which it was started, so it is of no use in another.
        """
        environment = dict(environment or {})
        with self._lock:
            is_fit = self._environment == environment
            waiting = self._waiting if is_fit else None
            if is_fit:
                self._waiting = None
            if self._waiting is None:
                self._is_due = self._is_wanted
        if waiting is None:
            return ChildProcess(self._module, request, log_path, environment=environment)
        try:
            if waiting.begin(request, log_path):
                return waiting
            reason = waiting.describe_death()
        except OSError as error:
            reason = f"can't be used: {error}"
        log.warning("The process that waited for a job %s", reason)
        self._end(waiting)
        return ChildProcess(self._module, request, log_path, environment=environment)

    def close(self) -> None:
        """Kill the prewarmed process: it has no state to save."""
        with self._lock:
            waiting, self._waiting, self._is_due = self._waiting, None, False
        if waiting:
            self._end(waiting)

    def _end(self, waiting: ChildProcess) -> None:
        waiting.kill()
        waiting.close()
        self._log_path.unlink(missing_ok=True)


def remove_leftovers(settings: Settings, was_killed: Callable[[str], bool]) -> None:
    """Remove the logs of the prewarmed processes of killed workers; these processes died with them."""
    pattern = _log_path(settings, "*")
    for path in pattern.parent.glob(pattern.name):
        if was_killed(path.stem.removeprefix(_PREFIX)):
            path.unlink(missing_ok=True)


def _log_path(settings: Settings, worker_id: str) -> Path:
    # On the disk of the folders of jobs, so that it can be moved into one of them.
    return settings.job_folder(f"{_PREFIX}{worker_id}.log")
