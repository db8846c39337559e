"""Pause points in processes under test: a process waits at one until the test resumes or kills it."""

import os
from pathlib import Path

from tests.waiting import wait_for

FOLDER = "PAUSE_POINTS_FOLDER"
_MAX_PAUSE_SECONDS = 300


def pause(point: str) -> None:
    """In the process: wait at the point if the test has set it. Each setting pauses one process once."""
    folder = Path(os.environ[FOLDER])
    reached = folder / f"{point}.reached"
    try:
        (folder / f"{point}.set").rename(reached)
    except FileNotFoundError:
        return
    wait_for(lambda: not reached.exists(), "the test", timeout_seconds=_MAX_PAUSE_SECONDS)


class PausePoints:
    """The test's control over the pause points."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def set(self, *points: str) -> None:
        """Pause the next process that reaches each of the points."""
        for point in points:
            (self._folder / f"{point}.reached").unlink(missing_ok=True)
            (self._folder / f"{point}.set").touch()

    def wait_for(self, point: str) -> None:
        """Wait until a process is paused at the point."""
        wait_for((self._folder / f"{point}.reached").exists, f"a pause at {point}", timeout_seconds=120)

    def resume(self, point: str) -> None:
        """Let the paused process continue."""
        (self._folder / f"{point}.reached").unlink()

    def unset(self, point: str) -> None:
        """Remove a point. Raises FileNotFoundError where a process has reached it."""
        (self._folder / f"{point}.set").unlink()
