"""Processes that stop at appointed moments, until a test lets them go on or kills them."""

import os
from pathlib import Path

from tests.waiting import wait_for

FOLDER = "HELD_FOLDER"
_LONG_SECONDS = 300


def hold(moment: str) -> None:
    """The moment has come, in the process: wait where it was appointed. Each appointment is kept once."""
    folder = Path(os.environ[FOLDER])
    kept = folder / f"{moment}.kept"
    try:
        (folder / f"{moment}.appointed").rename(kept)
    except FileNotFoundError:
        return
    wait_for(lambda: not kept.exists(), "the test", timeout_seconds=_LONG_SECONDS)


class Appointments:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def make(self, *moments: str) -> None:
        """Appoint them."""
        for moment in moments:
            (self._folder / f"{moment}.kept").unlink(missing_ok=True)
            (self._folder / f"{moment}.appointed").touch()

    def wait_for(self, moment: str) -> None:
        """Until a process is held there."""
        wait_for((self._folder / f"{moment}.kept").exists, f"the moment {moment}", timeout_seconds=120)

    def let_go(self, moment: str) -> None:
        """Let it go on."""
        (self._folder / f"{moment}.kept").unlink()

    def drop(self, moment: str) -> None:
        """Take back an appointment. Fails where it was kept."""
        (self._folder / f"{moment}.appointed").unlink()
