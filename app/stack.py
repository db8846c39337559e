"""Runs the API and a worker as child processes, for `tunesmith up` and the demo.

Knows the two only as processes and over HTTP. Each child has a session of its own, so that Ctrl-C in the
terminal reaches this process alone, and the children are stopped in order.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Self

import httpx

API, WORKER = "API", "worker"
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class StackError(Exception):
    """The stack can't start or has stopped; the message names the process and the reason."""


class Stack:
    """The API and a worker, from `start()` to `stop()` or the end of the `with` block.

    `environment` is added to this process's own. With `data_dir` they keep everything there, their output
    too (`logs/api.log`, `logs/worker.log`); without it they write to this process's output.
    """

    def __init__(
        self,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        data_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        worker_module: str = "worker",
    ) -> None:
        self.host = host
        self.port = port
        self._log_folder = data_dir / "logs" if data_dir else None
        self._environment = {
            **os.environ,
            **({"TUNESMITH_DATA_DIR": str(data_dir)} if data_dir else {}),
            "TUNESMITH_HOST": host,
            "TUNESMITH_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self._worker_module = worker_module
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The address of the API for clients on this machine."""
        return find_url(self.host, self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 60, *, with_worker: bool = True) -> None:
        """Start the API, wait until it responds (the database is migrated then), start the worker.

        Raises StackError; `stop()` ends what was started.
        """
        _check_port(self.host, self.port)
        self._spawn(API, "app")
        self._wait_for(lambda: _responds_ok(f"{self.url}/health"), timeout, "The API does not answer")
        if with_worker:
            self._spawn(WORKER, self._worker_module)

    def wait_until_ready(self, timeout: float = 180) -> None:
        """Wait until a worker trains and an engine serves. Raises StackError."""
        self._wait_for(lambda: _responds_ok(f"{self.url}/ready"), timeout, "The worker is not ready")

    def wait(self) -> None:
        """Wait for ever. Raises StackError when a child ends, KeyboardInterrupt on Ctrl-C."""
        while True:
            self.check()
            time.sleep(_WATCH_SECONDS)

    def check(self) -> None:
        """Raise StackError if a child has ended."""
        for name, child in self._children.items():
            status = child.poll()
            if status is not None:
                raise StackError(f"The {name} stopped with {_describe(status)}.{self._log_hint(name)}")

    def stop(self, grace_seconds: float = 100) -> None:
        """End both children with SIGTERM, and with SIGKILL after `grace_seconds` or at a second Ctrl-C.

        The default is longer than a worker's own grace: it finishes a training step and requeues its job.
        """
        children, self._children = self._children, {}
        try:
            for child in reversed(children.values()):
                _signal(child, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            for child in children.values():
                child.wait(max(0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for child in children.values():
                _signal(child, signal.SIGKILL, group=True)
                child.wait()

    def _spawn(self, name: str, module: str) -> None:
        log = self._open_log(name)
        try:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", module],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
            )
        finally:
            if log:
                log.close()  # the child has its own

    def _open_log(self, name: str) -> IO[bytes] | None:
        if self._log_folder is None:
            return None
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self._log_path(name).open("ab")

    def _log_path(self, name: str) -> Path:
        return (self._log_folder or Path()) / f"{name.lower()}.log"

    def _log_hint(self, name: str) -> str:
        return f" Its log: {self._log_path(name)}" if self._log_folder else ""

    def _wait_for(self, is_done: Callable[[], bool], timeout: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout
        while not is_done():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{complaint} after {timeout:.0f} s.{self._last_reasons()}")
            time.sleep(_POLL_SECONDS)
        self.check()

    def _last_reasons(self) -> str:
        try:
            answer = httpx.get(f"{self.url}/ready", timeout=5, trust_env=False)
            return " " + " ".join(answer.json()["reasons"])
        except (httpx.HTTPError, ValueError, KeyError):
            return ""


def find_url(host: str, port: int | str) -> str:
    """The address for clients on this machine of an API that listens on this host and port."""
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _responds_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _check_port(host: str, port: int) -> None:
    """Raise StackError if the port is taken: another server would respond in place of the API."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"{host}:{port} can't be used: {error.strerror}. Choose another port: --port, TUNESMITH_PORT."
            ) from None


def _signal(child: subprocess.Popen[bytes], number: signal.Signals, *, group: bool = False) -> None:
    if child.poll() is not None:
        return
    if group:
        os.killpg(child.pid, number)  # with whatever it had started in its session
    else:
        child.send_signal(number)


def _describe(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
