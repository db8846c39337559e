"""One rank of a job over several hosts: Ray Train's training function. Its files are on its own host."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel
from ray import train
from ray.train.torch import TorchConfig

from app.core.jobs.events import Checkpoint
from app.core.settings import RankSettings
from app.core.storage.scratch import remove_abandoned, scratch_folder
from worker.processes.reports import CheckpointAdapterSaved, Ended, Happened, Outcome, TrainingRequest
from worker.training.hosts.files import FolderSender, send_folder
from worker.training.hosts.inputs import JobInputs, localize
from worker.training.hosts.mailbox import RankMail
from worker.training.ranks.rank import RankLink, run_part
from worker.training.ranks.world import World

OUTPUT = "output"
# How long a rank that has lost another waits for Ray to end it, which names the other one.
_END_SECONDS = 60.0


class RankFailed(Exception):
    """The rank's part of the attempt failed: its last report says of what, or another rank is gone."""


class OneGpuEach(TorchConfig):
    """How ranks meet. Each sees its own GPU alone, as device 0; Ray would show it those of all ranks."""

    @property
    def backend_cls(self) -> Any:
        """The class that prepares the processes."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    share_cuda_visible_devices = False


@dataclass(frozen=True)
class Joined:
    """A rank's first message: the host on which it runs."""

    host: str


def run_host_rank(config: dict[str, Any]) -> None:
    """Run this rank's part of the attempt.

    `config`: the driver's `request`, as JSON; its `inputs`; the actor of its `mailbox`. Raises RankFailed, so
    that Ray ends the other ranks.
    """
    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    mail = RankMail(config["mailbox"], rank)
    mail.put(Joined(f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"))
    request = TrainingRequest.model_validate_json(config["request"])
    with _local_files(request, config["inputs"], World(rank, size)) as local:
        link = HostLink(rank, mail, request, local)
        ended = run_part(local, link, rank, size)
        if ended is None:
            threading.Event().wait(_END_SECONDS)
            raise RankFailed(f"rank {rank} of {size} lost another")
        link.send_ending(ended)
    sys.stdout.flush()
    if ended.outcome is Outcome.FAILED:
        raise RankFailed(ended.message)


class HostLink(RankLink):
    """A rank's link to a driver on another host: the files that a report is about arrive there before it."""

    def __init__(self, rank: int, mail: RankMail, request: TrainingRequest, local: TrainingRequest) -> None:
        """`request`: as on the driver's host; `local`: as on this one."""
        super().__init__(rank, mail)
        self._mail = mail
        self._request = request
        self._local = local
        self._files = FolderSender(local.job_folder, mail.put) if rank == 0 else None

    def send(self, report: BaseModel) -> None:
        """Report to the worker, from rank 0; does nothing on other ranks."""
        if self._files is None:
            return
        if isinstance(report, CheckpointAdapterSaved):
            unit = report.folder.relative_to(self._local.job_folder)
            self._files.send_changes()
            super().send(report.model_copy(update={"folder": self._request.job_folder / unit}))
            self._files.forget(str(unit))  # the worker moves it to the store
            return
        if isinstance(report, Happened) and isinstance(report.event, Checkpoint):
            self._files.send_changes()
        super().send(report)

    def send_ending(self, ended: Ended) -> None:
        """Send what is left of the files, and the last report."""
        if self._files is not None:
            self._files.send_changes()
            if ended.outcome is Outcome.FINISHED:
                send_folder(OUTPUT, self._local.output_folder, self._mail.put)
        super().send_ending(ended)


@contextmanager
def _local_files(request: TrainingRequest, inputs: JobInputs, world: World) -> Iterator[TrainingRequest]:
    """The request with the job's files in a folder of this host, which its first rank makes and removes."""
    settings = RankSettings()
    host = ray.get_runtime_context().get_node_id()
    hosts = world.gather(host)
    is_first = hosts.index(host) == world.rank
    if not is_first:
        found = dict(world.gather((host, None)))
        yield localize(request, Path(str(found[host])), settings.models_dir)
        return
    remove_abandoned(settings.data_dir)
    with scratch_folder(settings.data_dir) as folder:
        inputs.write(folder)
        world.gather((host, str(folder)))
        yield localize(request, folder, settings.models_dir)
