"""Maps a function over items in several processes, where one would take long. Knows nothing of the items.

A process starts with the imports of the function's module, which takes seconds. So the calling process maps
the first items alone, and times them.
"""

import logging
import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from worker.processes import spawned

Item = TypeVar("Item")
Result = TypeVar("Result")

_TIMED_ITEMS = 256
_ITEMS_OF_A_TASK = 64
_TASKS_AHEAD = 3  # for each process, so that none waits for the caller
_START_SECONDS = 5.0
_MOST_PROCESSES = 8  # each has the libraries in memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """How many items there are, and how many of the machine's processors may be used."""

    count: int
    processors: int

    def choose_processes(self, done: int, seconds: float) -> int:
        """Returns in how many processes the rest is mapped soonest, where `done` items took these seconds."""
        processes = min(self.processors, _MOST_PROCESSES)
        alone = seconds / max(1, done) * (self.count - done)
        # Twice the time that a start takes: the machine may have other work.
        return processes if processes and alone > 2 * _START_SECONDS + alone / processes else 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], work: Work | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the function's result, in the items' order.

    Without `work`, or where several processes would save no time, or the function can't be sent to them, this
    process calls it for each. Raises what the function raises, of the first item for which it does.
    """
    remaining = iter(items)
    spent, timed = 0.0, 0
    for item in islice(remaining, _TIMED_ITEMS):
        began = time.monotonic()
        result = function(item)
        spent += time.monotonic() - began
        timed += 1
        yield item, result
    processes = work.choose_processes(timed, spent) if work else 1
    pickled = _try_to_pickle(function) if processes > 1 else None
    if pickled is None:
        for item in remaining:
            yield item, function(item)
    else:
        yield from _map_in_processes(function, pickled, remaining, processes)


def _map_in_processes(
    function: Callable[[Item], Result], pickled: bytes, items: Iterator[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    executor: ProcessPoolExecutor | None = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_initialize, initargs=(pickled,)
    )
    waiting: deque[tuple[list[Item], Future[list[Any]] | None]] = deque()
    try:
        while True:
            while len(waiting) < _TASKS_AHEAD * processes and (part := list(islice(items, _ITEMS_OF_A_TASK))):
                waiting.append((part, _submit(executor, part)))
            if not waiting:
                return
            part, future = waiting.popleft()
            try:
                results = future.result() if future else None
            except BrokenProcessPool:
                if executor:
                    _log.warning("A process that maps items died; this process goes on alone")
                results, executor = None, None
            yield from zip(part, results if results is not None else map(function, part), strict=True)
    finally:
        if executor:
            executor.shutdown(wait=False, cancel_futures=True)


def _submit(executor: ProcessPoolExecutor | None, items: list[Any]) -> Future[list[Any]] | None:
    """The results to come; None where there are no processes any more."""
    if executor is None:
        return None
    try:
        return executor.submit(_map_here, items)
    except BrokenProcessPool:
        return None


def _try_to_pickle(function: Callable[..., Any]) -> bytes | None:
    try:
        return pickle.dumps(function)
    except Exception:  # a library's object may raise anything
        _log.info("The function can't be sent to other processes", exc_info=True)
        return None


# In the child process: the function.
_function: Callable[[Any], Any]


def _initialize(pickled: bytes) -> None:
    """In the child process: import the function."""
    global _function
    spawned.prepare()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _function = pickle.loads(pickled)


def _map_here(items: list[Any]) -> list[Any]:
    """In the child process: the results."""
    return [_function(item) for item in items]
