"""Runs the examination in a child process of a running worker, which must not import torch itself."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable

from pydantic import ValidationError

from worker.doctor.findings import Finding, failed, failure, findings_adapter, render

log = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0  # between examinations while one fails


class Examination:
    """Examines once, then once a minute for as long as something fails; calls `on_end` after each time."""

    def __init__(self, on_end: Callable[[], None], *, module: str = "worker.doctor") -> None:
        self.failures: list[str] = []
        self._on_end = on_end
        self._command = [sys.executable, "-m", module, "--json"]
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="examination")

    def start(self) -> None:
        """Start the examination without waiting for its findings."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, killing a running examination."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            findings = self._examine()
            if self._stopping.is_set():
                return
            log.info("What this worker sees:\n%s", render(findings))
            self.failures = [finding.sentence for finding in failed(findings)]
            self._on_end()
            if not self.failures:
                return
            self._stopping.wait(_RETRY_SECONDS)

    def _examine(self) -> list[Finding]:
        with self._lock:
            if self._stopping.is_set():
                return []
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self._process = process
        output, errors = process.communicate()
        try:
            return findings_adapter.validate_json(output)
        except ValidationError:
            last = (errors.decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
            text = f"It ended with status {process.returncode}: {last}"
            return [failure("doctor", text, "Run `python -m worker --check`.")]
