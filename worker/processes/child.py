"""The child's end of the pipes to the worker: reads its request, sends reports, ends with the worker.

Knows nothing of what the child does, and no torch.
"""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from app.core import garbage

Request = TypeVar("Request", bound=BaseModel)


class ParentLink:
    """The pipes to the worker, which started this process as a `ChildProcess` (child_process.py).

    It is made once the process has imported its libraries: garbage collection begins here.
    """

    def __init__(self, report_fd: int) -> None:
        garbage.resume_after_imports()
        self._reports = os.fdopen(report_fd, "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        # Unbuffered: a thread that waits in a buffered reader aborts the interpreter when it ends.
        self._requests = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115

    def read_request(self, kind: type[Request]) -> Request:
        """The request, from the first line of standard input; ends the process where the worker is gone."""
        line = self._requests.readline()
        if not line:
            os._exit(1)
        return kind.model_validate_json(line)

    def watch(self, on_stop: Callable[[], None]) -> None:
        """Call `on_stop`, in another thread, when the worker asks for a stop; end with the worker."""
        self.watch_lines(lambda _line: on_stop())

    def watch_lines(self, on_line: Callable[[bytes], None]) -> None:
        """Call `on_line`, in another thread, with each further line of the worker; end with the worker."""
        threading.Thread(target=self._watch, args=(on_line,), daemon=True, name="parent-link").start()

    def send(self, report: BaseModel) -> None:
        """Send one report; ends the process where the worker is gone."""
        with self._lock:
            try:
                self._reports.write(report.model_dump_json() + "\n")
            except BrokenPipeError:
                os._exit(1)

    def _watch(self, on_line: Callable[[bytes], None]) -> None:
        while line := self._requests.readline():
            on_line(line)
        # An orphan would keep the GPU from the next worker, so the process ends without any cleanup.
        os._exit(1)
