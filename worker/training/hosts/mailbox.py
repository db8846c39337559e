"""The messages between the ranks of a job, on any hosts, and its driver: a Ray actor on the driver's host."""

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worker.processes.reports import STOP

# Each is at most a part of a file: a rank waits where the driver is behind.
_MOST_WAITING = 8


class _Mailbox:
    """Passes messages on in their order. All methods run in one event loop."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue(_MOST_WAITING)
        self._stop = asyncio.Event()

    async def put(self, message: Any) -> None:
        await self._messages.put(message)

    async def take(self) -> Any:
        return await self._messages.get()

    async def ask_to_stop(self) -> None:
        self._stop.set()

    async def wait_for_stop(self) -> None:
        await self._stop.wait()

    async def wait_for_end(self) -> None:
        await asyncio.Event().wait()  # ends as the actor does, with an error


class Mailbox:
    """The driver's end. Made on its host; it ends with the driver."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox)
        self.actor: Any = actor.remote()

    def take(self) -> Any:
        """Wait for the next message: (rank, message), or None once it is closed."""
        return ray.get(self.actor.take.remote())

    def ask_to_stop(self) -> None:
        """Ask the ranks to finish their present step and end."""
        self.actor.ask_to_stop.remote()

    def close(self) -> None:
        """Let `take` return None after all messages that were put."""
        ray.get(self.actor.put.remote(None))


class RankMail:
    """A rank's end, in the place of a connection to a launcher of its own host (ranks/rank.py)."""

    def __init__(self, actor: Any, rank: int) -> None:
        self._actor = actor
        self._rank = rank
        self._was_asked = False

    def send_bytes(self, report: bytes) -> None:
        """Send a report. Raises BrokenPipeError where the driver is gone."""
        self.put(report)

    def put(self, message: Any) -> None:
        """Send a message; returns once the driver's host has it. Raises BrokenPipeError."""
        try:
            ray.get(self._actor.put.remote((self._rank, message)))
        except RayError as error:
            raise BrokenPipeError from error

    def recv_bytes(self) -> bytes:
        """Wait for a stop, and after it for the driver's end. Raises EOFError where the driver is gone."""
        wait = self._actor.wait_for_end if self._was_asked else self._actor.wait_for_stop
        try:
            ray.get(wait.remote())
        except RayError as error:
            raise EOFError from error
        self._was_asked = True
        return STOP
