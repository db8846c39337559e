"""The worker's end of the pipes to a child: starts it, reads its reports, stops it. Knows no torch."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from worker.processes.reports import STOP

_START = "worker.processes.module_start"
_ENVIRONMENT = {
    # Threads that spin while they wait make a busy machine many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Nothing here is compiled, but bitsandbytes asks for it where it is imported: a sixth of a child's start.
    "TORCHDYNAMO_DISABLE": "1",
}


class ChildProcess:
    """A Python module running in a process of its own.

    Its reports arrive as raw lines in `reports`; None there means that it closed the pipe, which it does at
    the latest when it dies. What it prints goes to a log file. Without a request it waits for one.
    """

    def __init__(
        self,
        module: str,
        request: BaseModel | None,
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = log_path
        self.reports: queue.Queue[bytes | None] = queue.Queue()
        read_fd, write_fd = os.pipe()
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _START, module, str(write_fd)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write_fd],
                env={**_ENVIRONMENT, **os.environ, **(environment or {})},
                # A Ctrl-C in the terminal is for the worker, which then stops its children.
                start_new_session=True,
            )
        os.close(write_fd)
        if request is not None:
            self._send_request(request)
        threading.Thread(target=self._read, args=(read_fd,), daemon=True, name=f"{module} reports").start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll()

    def begin(self, request: BaseModel, log_path: Path) -> bool:
        """Send a waiting child its request; returns whether it was alive to get it. Raises OSError.

        Its log file moves to `log_path`, with what the child printed while it waited.
        """
        if self.exit_status is not None:
            return False
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path.replace(log_path)
        self.log_path = log_path
        return self._send_request(request)

    def send(self, message: BaseModel) -> bool:
        """Send a further message; returns whether the child was alive to get it."""
        return self._send_request(message)

    def ask_to_stop(self) -> None:
        """Ask the child to finish its present step and end."""
        self._write(STOP)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """The exit status, or None when it still runs after the time-out."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Kill the child and all processes of its group, and wait until the child is gone."""
        if self._process.poll() is None:
            # The child is the group's leader (`start_new_session`) and not reaped, so its id is its own.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Close the pipe to the child; a child that still runs ends when it sees that."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def describe_death(self) -> str:
        """How a child ended that gave no last report: its exit status, and the last line that it printed."""
        last = (self.log_tail().strip().splitlines() or ["it printed nothing"])[-1]
        return f"ended with status {self.exit_status} before it was done: {last}"

    def log_tail(self, max_bytes: int = 4000) -> str:
        """The last bytes of what the child printed, as text."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - max_bytes))
            return log.read().decode(errors="replace")

    def _send_request(self, request: BaseModel) -> bool:
        return self._write(request.model_dump_json().encode() + b"\n")

    def _write(self, line: bytes) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return False  # it is dead already; its exit status says more
        return True

    def _read(self, read_fd: int) -> None:
        with os.fdopen(read_fd, "rb") as lines:
            for line in lines:
                # A child that is killed may leave half a line.
                if line.endswith(b"\n"):
                    self.reports.put(line)
        self.reports.put(None)
