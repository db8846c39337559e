"""One rank of a job over several devices. Loads no ML library before its device is chosen."""

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel

from app.core import garbage
from app.core.errors import TunesmithError
from worker.processes.reports import STOP, Ended, Outcome, TrainingRequest
from worker.training.ranks.smaller_passes import MemoryRanOut, SmallerPasses

if TYPE_CHECKING:
    from worker.training.ranks.world import World

# Variables by which transformers and accelerate learn of other ranks: each rank's trainer runs alone.
_HIDDEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# How long a rank that has lost another waits for the launcher to end it, which names the other one.
_END_SECONDS = 30.0
# The same for an error that the loss of another rank may have caused, before the rank reports it.
_DOUBT_SECONDS = 10.0


def run_rank(request_json: str, connections: Sequence[Connection]) -> None:
    """Run this rank's part of the attempt. `connections`: to the launcher, one for each rank.

    Called by torch's launcher in a process of its own. Ends the process with status 1 after a failure, so
    that the launcher ends the others.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    see_own_gpu(rank)
    for other, connection in enumerate(connections):
        if other != rank:
            connection.close()
    link = RankLink(rank, connections[rank])
    ended = run_part(TrainingRequest.model_validate_json(request_json), link, rank, size)
    if ended is None:
        threading.Event().wait(_END_SECONDS)
        os._exit(1)
    if ended.code == TunesmithError.code:
        threading.Event().wait(_DOUBT_SECONDS)
    link.send_ending(ended)
    _flush()
    if ended.outcome is Outcome.FAILED:
        os._exit(1)


class RankConnection(Protocol):
    """A connection between a rank and what launched it: a pipe, or one between hosts."""

    def send_bytes(self, buf: bytes, /) -> None:
        """Send a report. Raises BrokenPipeError where the launcher is gone."""

    def recv_bytes(self) -> bytes:
        """Wait for what the launcher sends. Raises EOFError or OSError where it is gone."""


class RankLink:
    """A rank's connection to the launcher: rank 0 reports through it; others only their failure."""

    def __init__(self, rank: int, connection: RankConnection) -> None:
        self._rank = rank
        self._connection = connection
        self._lock = threading.Lock()

    def watch(self, asked_to_stop: threading.Event) -> None:
        """Set the event when a stop is requested, in another thread; end with the launcher."""
        threading.Thread(target=self._watch, args=(asked_to_stop,), daemon=True, name="launcher-link").start()

    def send(self, report: BaseModel) -> None:
        """Report to the worker, from rank 0; does nothing on other ranks, which know the same."""
        if self._rank == 0:
            self._send(report)

    def send_ending(self, ended: Ended) -> None:
        """Send the last report: of other ranks than 0, a failure only."""
        if self._rank == 0 or ended.outcome is Outcome.FAILED:
            self._send(ended)

    def send_passes(self, passes: SmallerPasses) -> None:
        """Have all ranks begin again with fewer rows in a pass; from any rank."""
        self._send(passes)

    def _send(self, report: BaseModel) -> None:
        with self._lock:
            try:
                self._connection.send_bytes(report.model_dump_json().encode())
            except BrokenPipeError:
                os._exit(1)

    def _watch(self, asked_to_stop: threading.Event) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                if self._connection.recv_bytes() == STOP:
                    asked_to_stop.set()
        # An orphan would keep its GPU from the next attempt.
        os._exit(1)


def run_part(request: TrainingRequest, link: RankLink, rank: int, size: int) -> Ended | None:
    """Run this rank's part of the attempt. Returns its last report; None where another rank is gone.

    Ends the process where memory ran out and all ranks begin again.
    """
    with garbage.importing():
        from worker.training.progress import library_log
        from worker.training.ranks.world import RankLost
        from worker.training.run import run

    asked_to_stop = threading.Event()
    link.watch(asked_to_stop)
    library_log.attach(link.send)
    try:
        return run(request, link.send, asked_to_stop, enter_world(rank, size))
    except MemoryRanOut as error:
        link.send_passes(error.passes)
        _flush()
        os._exit(1)
    except RankLost as error:
        print(f"Rank {rank} of {size} lost another: {error}", file=sys.stderr)
        _flush()
        return None


def enter_world(rank: int, size: int) -> "World":
    """Meet the other ranks. Raises RankLost."""
    import torch

    from worker.training.ranks.world import ALONE, join_world

    world = join_world(rank, size, is_cuda=torch.cuda.is_available()) if size > 1 else ALONE
    for name in _HIDDEN:
        os.environ.pop(name, None)
    return world


def see_own_gpu(rank: int) -> None:
    """Make this rank's GPU the only one that the process sees, as device 0; before CUDA starts."""
    os.environ[_VISIBLE] = choose_gpu(rank, os.environ.get(_VISIBLE))


def choose_gpu(rank: int, visible: str | None) -> str:
    """The one GPU that a rank sees, of those visible to the launcher. None: all; empty: it uses the CPU."""
    if visible is None:
        return str(rank)
    return visible.split(",")[rank] if visible else ""


def _flush() -> None:
    with contextlib.suppress(OSError):  # the log's disk may be full
        sys.stdout.flush()
        sys.stderr.flush()
