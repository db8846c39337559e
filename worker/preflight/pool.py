"""One process beside the engine, for work that would stall it. It starts at its first use.

Tokenizing a large dataset holds Python's lock for seconds; in a process of its own nobody waits for it.
"""

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

import torch

from app.core.errors import QueueFull
from app.core.errors.engine import EngineFailed

MAX_WAITING = 16

Given = ParamSpec("Given")
Result = TypeVar("Result")


class SideProcess:
    """Runs functions one after the other in a process that is made again when it dies."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._waiting = 0

    async def run(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """The function's result. Raises what it raises; QueueFull; EngineFailed where the process died."""
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{self._waiting} requests for previews and preflights are waiting already.")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._submit(function, *args, **kwargs))
        except BrokenProcessPool as error:
            raise EngineFailed(
                "The process that reads datasets died; the machine may be short of memory.", hint="Try again."
            ) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process, where there is one; one that is at work is left to die with this one."""
        if self._executor:
            self._executor.shutdown(wait=not self._waiting, cancel_futures=True)

    def _submit(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Future[Result]:
        executor = self._executor = self._executor or _make_executor()
        try:
            return executor.submit(function, *args, **kwargs)
        except BrokenProcessPool:
            # It died since the last request; a new one knows nothing of why.
            self._executor = _make_executor()
            return self._executor.submit(function, *args, **kwargs)


def _make_executor() -> ProcessPoolExecutor:
    # Spawned, not forked: the engine's process has threads and perhaps a CUDA context.
    spawning = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers=1, mp_context=spawning, initializer=_settle_in)


def _settle_in() -> None:
    """In the new process: no GPU, one thread, and no life after the engine's."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True, name="parent watch").start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
