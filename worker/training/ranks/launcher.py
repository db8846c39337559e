"""Runs a job over several devices: `python -m worker.training.ranks.launcher <report_fd>`.

It is the worker's child, and leads a process group of which the ranks are members. torch's launcher (the one
of `torchrun`) starts a process for each device, tells them how to meet, and ends all when one dies. This
module passes rank 0's reports on, and a stop to rank 0; it loads no model. Where the ranks divide the base
model and memory runs out on one of them, it starts all again with fewer rows in a pass.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import TypeVar

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from app.core.errors.jobs import TooFewDevices
from app.core.jobs.events import Evaluation, Metrics, Warn
from worker.processes.child import ParentLink
from worker.processes.reports import STOP, CurvePoint, Ended, Happened, Outcome, TrainingRequest
from worker.training.ranks.rank import run_rank
from worker.training.ranks.smaller_passes import SmallerPasses, message_adapter

Returned = TypeVar("Returned")


def main() -> None:
    """Run the attempt that the request on standard input describes; status 1: a rank died."""
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(TrainingRequest)
    try:
        check_devices(request)
    except TooFewDevices as error:
        link.send(Ended(outcome=Outcome.FAILED, code=error.code, message=error.message, hint=error.hint))
        os._exit(0)
    status = launch(request, link)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def check_devices(request: TrainingRequest) -> None:
    """Raises TooFewDevices where this machine has fewer devices than the job asks for."""
    wanted, gpus = request.spec.resources.gpus, torch.cuda.device_count()
    if wanted > (gpus or request.cpu_ranks):
        has = f"{gpus} of them" if gpus else "none"
        raise TooFewDevices(
            f"The job asks for {wanted} GPUs, and this worker has {has}.",
            hint="Lower resources.gpus, or start a worker on a host with more GPUs.",
        )


def launch(request: TrainingRequest, link: ParentLink) -> int:
    """Run all ranks to their end; returns the exit status. Prints which rank died, as its last line."""
    size = request.spec.resources.gpus
    # As many threads as processors in all, where nothing else is said.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    stop = _Stop()
    link.watch(on_stop=stop.request)
    while True:
        reports, failure = _run_ranks(request, link, stop)
        if reports.smaller_passes is None:
            break
        request = reports.smaller_passes.apply(request, reports.last_point)
        link.send(Happened(event=Warn(code="out_of_memory", message=reports.smaller_passes.reason)))
    if ended := reports.find_ending():
        link.send(ended)
        return 0
    print(describe_death(failure, size) if failure else "The ranks ended without a report.", file=sys.stderr)
    return 1


def describe_death(failure: ProcessFailure, size: int) -> str:
    """Which rank died of what, in a sentence."""
    if failure.exitcode >= 0:
        return f"rank {failure.local_rank} of {size} ended with status {failure.exitcode}"
    name = signal.Signals(-failure.exitcode).name
    memory = "; the system may have run out of memory" if -failure.exitcode == signal.SIGKILL else ""
    return f"rank {failure.local_rank} of {size} was killed by signal {-failure.exitcode} ({name}){memory}"


def _run_ranks(
    request: TrainingRequest, link: ParentLink, stop: "_Stop"
) -> tuple["_Reports", ProcessFailure | None]:
    """Run the ranks to their end. Returns what they reported, and the failure of the one that died first."""
    pairs = [multiprocessing.Pipe() for _ in range(request.spec.resources.gpus)]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    stop.pass_on(ours[0])
    reports = _Reports(link, ours)
    reports.start()
    failure = None
    try:
        start_processes(run_rank, len(pairs), request.job_id, request.model_dump_json(), theirs)
    except ChildFailedError as error:
        _rank, failure = error.get_first_failure()
    for connection in theirs:
        connection.close()
    reports.join()
    return reports, failure


def start_processes(
    entry: Callable[..., Returned], size: int, name: str, *arguments: object
) -> dict[int, Returned]:
    """Run a function in so many processes that can meet, until all have ended; returns their results by rank.

    Raises ChildFailedError where one failed: the others are ended then.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="spawn",
    )
    found: dict[int, Returned] = elastic_launch(config, entry)(*arguments)
    return found


class _Stop:
    """Passes the worker's stop to the present rank 0, and to one that is started after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_requested = False
        self._connection: Connection | None = None

    def request(self) -> None:
        """Stop rank 0, now or once it has started."""
        with self._lock:
            self._is_requested = True
            self._send()

    def pass_on(self, connection: Connection) -> None:
        """`connection`: to the rank 0 that is about to start."""
        with self._lock:
            self._connection = connection
            if self._is_requested:
                self._send()

    def _send(self) -> None:
        if self._connection:
            with contextlib.suppress(OSError):  # rank 0 has ended
                self._connection.send_bytes(STOP)


class _Reports(threading.Thread):
    """Passes rank 0's reports on as they come, and collects the last message of each rank."""

    def __init__(self, link: ParentLink, connections: list[Connection]) -> None:
        super().__init__(daemon=True, name="rank-reports")
        self._link = link
        self._connections = connections
        self._endings: dict[int, Ended] = {}
        self.smaller_passes: SmallerPasses | None = None
        self.last_point: CurvePoint | None = None

    def run(self) -> None:
        """Read until all ranks are gone."""
        ranks = {connection: rank for rank, connection in enumerate(self._connections)}
        while ranks:
            for connection in wait(list(ranks)):
                assert isinstance(connection, Connection)
                try:
                    message = message_adapter.validate_json(connection.recv_bytes())
                except (EOFError, OSError):
                    del ranks[connection]
                    continue
                if isinstance(message, Ended):
                    self._endings[ranks[connection]] = message
                elif isinstance(message, SmallerPasses):
                    self.smaller_passes = message
                else:
                    if isinstance(message, Happened) and isinstance(message.event, Metrics | Evaluation):
                        self.last_point = message.event
                    self._link.send(message)

    def find_ending(self) -> Ended | None:
        """The last report of the attempt."""
        return choose_ending(self._endings, len(self._connections))


def choose_ending(endings: Mapping[int, Ended], size: int) -> Ended | None:
    """The last report of an attempt: rank 0's, or else that of the first other rank that failed."""
    if not endings:
        return None
    rank = min(endings)
    ended = endings[rank]
    if rank == 0:
        return ended
    return ended.model_copy(update={"message": f"Rank {rank} of {size}: {ended.message}"})


if __name__ == "__main__":
    main()
