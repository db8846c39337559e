"""One process that renders chat templates, and its limits."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from app.core.errors.engine import EngineFailed
from app.core.errors.jobs import TemplateExceedsLimits

Span = tuple[int, int]
_PROGRAM = "worker.templates.rendering.program"
_START_SECONDS = 120
_END_SECONDS = 5
# No other variable: a template has no need to read the tokens of the Hub or of the engine.
_PASSED_VARIABLES = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_TIME")


class TemplateRefused(Exception):
    """The template raised an error, which the text says."""


@dataclass(frozen=True)
class RenderLimits:
    """What one rendering may take.

    `wall_seconds` is for a process that stands still; `memory_bytes` is beyond what the process has before;
    `characters` are those of the rendered text.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 20.0
    memory_bytes: int = 512 * 1024 * 1024
    characters: int = 16 * 1024 * 1024


class RenderProcess:
    """A child process that renders one conversation at a time. It starts with the first one, or `start`.

    A process that exceeded a limit is ended; the next rendering starts another one. `last_cpu_seconds` is the
    processor time of the latest rendering, `is_ready` whether the next one can begin at once. Used from one
    thread at a time, but for `measure_cpu_seconds`.
    """

    last_cpu_seconds = 0.0
    # The processor time of the process before the rendering under way.
    _used_before = 0.0

    def __init__(self, limits: RenderLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self.is_ready = False

    def start(self) -> Connection:
        """Start the process, without waiting for it, where it does not run."""
        if self._connection is None:
            ours, theirs = socket.socketpair()
            passed = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _PROGRAM, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**passed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,
                )
            self._connection, self.is_ready = Connection(ours.detach()), False
        return self._connection

    def wait_until_ready(self) -> Connection:
        """Start the process where it does not run, and wait for it. Raises EngineFailed."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it was killed between two renderings
        connection = self.start()
        try:
            if not self.is_ready:
                if not connection.poll(_START_SECONDS):
                    raise EOFError
                self._used_before = json.loads(connection.recv_bytes())["total_cpu_seconds"]
        except (EOFError, OSError, ValueError) as error:
            self.close()
            raise EngineFailed(
                "The process that renders chat templates did not start.",
                hint="Try again. Where it fails each time, the worker's engine log says why.",
            ) from error
        self.is_ready = True
        return connection

    def render(
        self, template: str, messages: list[dict[str, Any]], variables: dict[str, Any], *, marks_answers: bool
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans that `{% generation %}` markers enclose.

        Raises TemplateRefused, TemplateExceedsLimits, and EngineFailed where the process does not start.
        """
        request = {
            "template": template,
            "messages": messages,
            "variables": variables,
            "marks_answers": marks_answers,
            "cpu_seconds": self._limits.cpu_seconds,
            "memory_bytes": self._limits.memory_bytes,
            "characters": self._limits.characters,
        }
        self.last_cpu_seconds = 0.0
        connection = self.wait_until_ready()
        try:
            connection.send_bytes(json.dumps(request).encode())
            if not connection.poll(self._limits.wall_seconds):
                self.close()
                raise EngineFailed("The process that renders chat templates stands still.", hint="Try again.")
            reply = json.loads(connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._describe_end() from error
        self.last_cpu_seconds = reply["cpu_seconds"]
        self._used_before = reply["total_cpu_seconds"]
        if reply["is_last"]:
            self.close()
        if "exceeds" in reply:
            raise self._exceeds(reply["exceeds"])
        if "error" in reply:
            raise TemplateRefused(reply["error"])
        return reply["text"], [(start, end) for start, end in reply["spans"]]

    def measure_cpu_seconds(self) -> float:
        """Returns the processor time that the rendering under way has taken so far. From any thread."""
        process = self._process
        if process is None:
            return 0.0
        try:
            user, system, *_ = psutil.Process(process.pid).cpu_times()
        except psutil.Error:
            return 0.0  # it has ended
        return float(user + system - self._used_before)

    def close(self) -> None:
        """End the process."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None
        self.is_ready = False

    def _describe_end(self) -> TemplateExceedsLimits | EngineFailed:
        """What ended the process within a rendering."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        status = self._process.poll()
        self.close()
        if status == -signal.SIGPROF:
            return self._exceeds("cpu_seconds")
        if status in (None, -signal.SIGKILL, -signal.SIGTERM):
            return EngineFailed(
                "The process that renders chat templates was killed: the machine may be short of memory.",
                hint="Try again.",
            )
        return TemplateExceedsLimits(
            "The chat template ends the process that renders this conversation.", hint=_HINT
        )

    def _exceeds(self, limit: str) -> TemplateExceedsLimits:
        reached = {
            "cpu_seconds": f"takes more than {self._limits.cpu_seconds:g} seconds to render",
            "memory_bytes": f"takes more than {self._limits.memory_bytes >> 20} MiB of memory to render",
            "characters": f"writes more than {self._limits.characters:,} characters for",
        }[limit]
        return TemplateExceedsLimits(f"The chat template {reached} this conversation.", hint=_HINT)


_HINT = "Use a chat_template that does less, or change the conversation."
