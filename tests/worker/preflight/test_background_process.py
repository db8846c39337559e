"""The background process starts at its first use, is replaced when it dies, and ends with its parent.

A child process imports this module, so it imports no ML library.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.core.errors import QueueFull
from app.core.errors.engine import EngineFailed
from worker.preflight import background_process
from worker.preflight.background_process import BackgroundProcess

ORPHAN = """
import asyncio, os, sys
from worker.preflight.background_process import BackgroundProcess

if __name__ == "__main__":
    print(asyncio.run(BackgroundProcess().run(os.getpid)), flush=True)
    os._exit(0)
"""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise RuntimeError("a library is missing")


def test_work_is_done_in_one_other_process() -> None:
    async def twice() -> list[int]:
        process = BackgroundProcess()
        try:
            return [await process.run(os.getpid), await process.run(os.getpid)]
        finally:
            process.close()

    first, second = asyncio.run(twice())

    assert first == second != os.getpid()


def test_a_process_that_died_is_replaced() -> None:
    async def die_and_continue() -> int:
        process = BackgroundProcess()
        try:
            with pytest.raises(EngineFailed, match="died"):
                await process.run(die)
            return await process.run(os.getpid)
        finally:
            process.close()

    assert asyncio.run(die_and_continue()) != os.getpid()


def run_endlessly() -> None:
    background_process.MAX_SECONDS = 1
    background_process._run_limited(threading.Event().wait)


def test_work_without_an_end_is_ended() -> None:
    async def run() -> int:
        process = BackgroundProcess()
        try:
            with pytest.raises(EngineFailed, match="no result within 10 minutes"):
                await process.run(run_endlessly)
            return await process.run(os.getpid)
        finally:
            process.close()

    assert asyncio.run(run()) != os.getpid()


def test_too_many_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_process, "MAX_WAITING", 0)

    with pytest.raises(QueueFull):
        asyncio.run(BackgroundProcess().run(os.getpid))


def test_the_process_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    command = ["env", f"PYTHONPATH={Path.cwd()}", sys.executable, str(script)]

    # Standard output is closed only when the background process, which inherits it, has ended too.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True)

    assert int(done.stdout) > 0


def test_work_goes_on_after_a_warm_up_that_fails() -> None:
    async def run() -> int:
        process = BackgroundProcess()
        try:
            process.start(fail)
            return await process.run(os.getpid)
        finally:
            process.close()

    assert asyncio.run(run()) != os.getpid()
