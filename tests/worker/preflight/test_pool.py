"""The side process: made at its first use, made again when it died, gone with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.errors import QueueFull
from app.core.errors.engine import EngineFailed
from worker.preflight import pool
from worker.preflight.pool import SideProcess

ORPHAN = """
import asyncio, os, sys
from worker.preflight.pool import SideProcess

if __name__ == "__main__":
    print(asyncio.run(SideProcess().run(os.getpid)), flush=True)
    os._exit(0)
"""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_work_is_done_in_one_other_process() -> None:
    async def twice() -> list[int]:
        side = SideProcess()
        try:
            return [await side.run(os.getpid), await side.run(os.getpid)]
        finally:
            side.close()

    first, second = asyncio.run(twice())

    assert first == second != os.getpid()


def test_a_process_that_died_is_made_again() -> None:
    async def die_and_go_on() -> int:
        side = SideProcess()
        try:
            with pytest.raises(EngineFailed, match="died"):
                await side.run(die)
            return await side.run(os.getpid)
        finally:
            side.close()

    assert asyncio.run(die_and_go_on()) != os.getpid()


def test_too_many_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_WAITING", 0)

    with pytest.raises(QueueFull):
        asyncio.run(SideProcess().run(os.getpid))


def test_the_process_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    command = ["env", f"PYTHONPATH={Path.cwd()}", sys.executable, str(script)]

    # Its standard output is closed only when the side process, which inherits it, is gone too.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True)

    assert int(done.stdout) > 0
