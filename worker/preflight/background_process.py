"""A background process of the engine, for work that would stall generation. Knows no torch.

Tokenizing a large dataset holds Python's global interpreter lock for seconds. The process starts at its first
use, or before it with a warm-up.
"""

import asyncio
import faulthandler
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import ParamSpec, TypeVar

from app.core.errors import QueueFull
from app.core.errors.engine import EngineFailed
from worker.processes import spawned
from worker.processes.logs import set_up_logging

_log = logging.getLogger(__name__)

MAX_WAITING = 16
MAX_SECONDS = 600

Params = ParamSpec("Params")
Result = TypeVar("Result")


class BackgroundProcess:
    """Runs functions one after the other in a child process, which is replaced when it dies."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._waiting = 0
        self._warm_up: Future[None] | None = None

    def start(self, warm_up: Callable[Params, None], *args: Params.args, **kwargs: Params.kwargs) -> None:
        """Start the child process and have it call `warm_up` first, without waiting.

        A process that dies of it, or later, is replaced at the next use, without a warm-up.
        """
        self._warm_up = self._submit(_warm_up, partial(warm_up, *args, **kwargs))

    async def run(
        self, function: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """Run the function in the child process and return its result.

        Raises the function's own errors, QueueFull, and EngineFailed where the process died.
        """
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{self._waiting} requests for previews and preflights are waiting already.")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._submit(function, *args, **kwargs))
        except BrokenProcessPool as error:
            raise EngineFailed(
                "The process that reads base models and datasets died: the machine may be short of memory, "
                f"or there was no result within {MAX_SECONDS // 60} minutes.",
                hint="Try again. Where it dies each time, name another base model or chat template: the "
                "worker's engine log says what it was doing.",
            ) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the child process; a busy one is not waited for and ends with this process."""
        if self._executor:
            is_busy = self._waiting or (self._warm_up and not self._warm_up.done())
            self._executor.shutdown(wait=not is_busy, cancel_futures=True)

    def _submit(
        self, function: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Future[Result]:
        executor = self._executor = self._executor or _make_executor()
        try:
            return executor.submit(_run_limited, partial(function, *args, **kwargs))
        except BrokenProcessPool:
            # The process died since the last request: replace it.
            self._executor = _make_executor()
            return self._executor.submit(_run_limited, partial(function, *args, **kwargs))


def _warm_up(function: Callable[[], None]) -> None:
    """In the child process: call the function. An error of it is logged: work may go well."""
    try:
        function()
    except Exception:
        _log.exception("The warm-up failed")


def _run_limited(work: Callable[[], Result]) -> Result:
    """In the child process: do the work; end the process, with a traceback, where it takes too long."""
    faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
    try:
        return work()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _make_executor() -> ProcessPoolExecutor:
    # Spawned, not forked: the engine's process has threads and perhaps a CUDA context.
    spawning = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers=1, mp_context=spawning, initializer=_initialize)


def _initialize() -> None:
    """In the child process."""
    spawned.prepare()
    set_up_logging()
