"""Starts the processes of Python graders, and ends each with its group when its time is over."""

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.core.errors import InvalidRequest
from app.core.graders.grades import GradeErrorKind, GradingFailed
from app.core.graders.shapes import AnyGrader, MultiGrader, PythonGrader
from app.core.settings import Settings

_CHILD = Path(__file__).with_name("python_child.py")
_MAX_ANSWER_BYTES = 100_000
# Libraries for numbers start a thread a core, each with memory of its own.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_SETTING = "TUNESMITH_ALLOW_PYTHON_GRADERS"


def check_allowed(grader: AnyGrader, settings: Settings) -> None:
    """Raise InvalidRequest for a Python grader, or a multigrader with one, where they are not allowed."""
    parts = list(grader.graders.values()) if isinstance(grader, MultiGrader) else [grader]
    if any(isinstance(part, PythonGrader) for part in parts) and not settings.allow_python_graders:
        raise InvalidRequest(
            "Python graders are not allowed here.",
            param="grader",
            hint=f"They run code of whoever may use the API; {_SETTING}=true allows them.",
        )


class PythonProcesses:
    """Runs Python graders, each in a process of its own, as many at a time as there are processors."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def run(self, source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
        """Returns what the source's `grade` returns.

        Raises GradingFailed where it returns no finite number, raises, or takes too much time or memory, and
        where Python graders are not allowed or the host can't isolate them.
        """
        if not self._settings.allow_python_graders:
            raise _unavailable(f"they are not allowed here, see {_SETTING}")
        if sys.platform != "linux":
            raise _unavailable("they need Linux, whose seccomp isolates them")
        work = {
            "source": source,
            "sample": dict(sample),
            "item": dict(item),
            "cpu_seconds": math.ceil(self._settings.python_grader_seconds),
            "memory_bytes": self._settings.python_grader_bytes,
        }
        async with self._slots:
            return _read(await self._run(json.dumps(work).encode()))

    async def _run(self, work: bytes) -> bytes:
        process = await asyncio.create_subprocess_exec(
            # Isolated: no code of the working directory or of PYTHONPATH, and none of the parent's secrets.
            *(sys.executable, "-I", str(_CHILD)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._settings.python_grader_seconds):
                return await _talk(process, work)
        except TimeoutError:
            seconds = f"{self._settings.python_grader_seconds:g}"
            raise _failed(f"It took longer than the {seconds} s that a Python grader may take.") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # Also reads what is left in the pipe: wait() does not return while a full pipe is unread.
            await process.communicate()


async def _talk(process: asyncio.subprocess.Process, work: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):
        process.stdin.write(work)
        await process.stdin.drain()
    process.stdin.close()
    try:
        return await process.stdout.readexactly(_MAX_ANSWER_BYTES)
    except asyncio.IncompleteReadError as ended:
        return ended.partial


def _read(answer: bytes) -> float:
    try:
        read = json.loads(answer)
        reason, unavailable = read.get("error"), read.get("unavailable")
        if reason is None and unavailable is None:
            return float(read["score"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _failed("Its process ended before it returned a score: out of time or memory.") from None
    if unavailable is not None:
        raise _unavailable(f"this host can't isolate a process, {unavailable}")
    raise _failed(str(reason))


def _failed(message: str) -> GradingFailed:
    return GradingFailed(GradeErrorKind.PYTHON_RUNTIME, message)


def _unavailable(reason: str) -> GradingFailed:
    return GradingFailed(GradeErrorKind.PYTHON_SERVER, f"Python graders are not available: {reason}.")
