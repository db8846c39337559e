"""The examination in a process of its own, beside a running worker, which must not load torch itself."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable

from pydantic import ValidationError

from worker.doctor.findings import Finding, failed, failure, findings_adapter, render

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 60.0  # between looks at what had failed


class Examination:
    """Examines once, and again each minute for as long as something fails. `on_end` is called after each."""

    def __init__(self, on_end: Callable[[], None], *, module: str = "worker.doctor") -> None:
        self.failures: list[str] = []
        self._on_end = on_end
        self._command = [sys.executable, "-m", module, "--json"]
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="examination")

    def start(self) -> None:
        """Begin, without waiting for what comes out."""
        self._thread.start()

    def stop(self) -> None:
        """End it, also in the middle."""
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
            self._stopping.wait(_AGAIN_SECONDS)

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
