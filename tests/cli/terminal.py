"""A command on a terminal of its own, as a person has it: what it draws is read, keys are typed."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """`tunesmith` with these arguments, at 80 columns unless said otherwise."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], *, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        # The terminal itself says how wide it is.
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**own, "TERM": "xterm-256color", **environment},
            # Ctrl-C must find it in the foreground of this terminal.
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.raw = ""

    @property
    def text(self) -> str:
        """Everything that was drawn so far, without colours and movements."""
        return _CONTROL.sub("", self.raw).replace("\r", "")

    def wait_for(self, pattern: str, *, timeout_seconds: float = 180) -> None:
        """Read until the text matches."""
        deadline = time.monotonic() + timeout_seconds
        while not re.search(pattern, self.text):
            assert self._read(deadline), f"{pattern!r} did not come: {self.text}"

    def interrupt_prompt(self, pattern: str) -> None:
        """Press Ctrl-C until the text matches.

        Python takes one that comes just before readline waits for a key only with the next key.
        """
        for _ in range(10):
            self.type(CTRL_C)
            with suppress(AssertionError):
                return self.wait_for(pattern, timeout_seconds=10)
        self.wait_for(pattern, timeout_seconds=0)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def wait(self, *, timeout_seconds: float = 180) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + timeout_seconds
        while self._read(deadline):
            pass
        return self.process.wait(5)

    def close(self) -> None:
        """End it, however far it is."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            piece = os.read(self._master, 65_536) if ready else b""
        except OSError:  # the other side is closed
            piece = b""
        self.raw += piece.decode(errors="replace")
        return bool(piece)


def _take_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A test run that a shell has put into the background ignores it, and so would all its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
