"""When processes look for garbage: not while they import, and in the API and the engine rarely as a whole.

CPython's full collection visits every object, the hundreds of thousands of the imported application and its
libraries too, and it comes just when many requests make new ones. What was imported never becomes garbage, so
it is excluded, and full collections come by the clock. Young garbage, nearly all of it, is collected as ever.
"""

import asyncio
import atexit
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Full collections by the number of new objects alone are put off to a number that is never reached in the
# meantime.
_YOUNG_COLLECTIONS = 1_000
_MIN_SECONDS_BETWEEN = 60.0
# So collections take at most a thousandth of the time.
_SECONDS_BETWEEN_PER_SECOND = 1_000


@contextmanager
def importing() -> Iterator[None]:
    """Import libraries without garbage collection: torch and transformers take a quarter less time."""
    gc.disable()
    try:
        yield
    finally:
        resume_after_imports()


def resume_after_imports() -> None:
    """Enable garbage collection after imports; until the interpreter ends it skips the objects they made."""
    if gc.isenabled():
        return
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)


def exclude_what_is_loaded() -> None:
    """Exclude every object that exists from garbage collection, and collect new ones by the clock."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _YOUNG_COLLECTIONS)


def include_what_was_loaded() -> None:
    """Undo the exclusion, for the interpreter's end: modules in C check that their objects are collected."""
    gc.unfreeze()


async def collect_by_the_clock() -> None:
    """Collect all garbage from time to time, until cancelled."""
    seconds = 0.0
    while True:
        await asyncio.sleep(max(_MIN_SECONDS_BETWEEN, seconds * _SECONDS_BETWEEN_PER_SECOND))
        began = time.perf_counter()
        gc.collect()
        seconds = time.perf_counter() - began
