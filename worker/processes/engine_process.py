"""Keeps the engine process running: starts it, restarts it, pauses it while a job needs the device.

Knows no torch and nothing of generation; talks HTTP to the engine and pipes to its process.
"""

import logging
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import ValidationError

from app.core.engine.preflight import MemoryFit, PreflightRequest
from app.core.engine.state import EngineHealth, EngineState
from app.core.settings import EngineKind, Settings
from worker.processes.child_process import ChildProcess
from worker.processes.reports import EngineRequest, Listening, StateChanged, VllmTarget

log = logging.getLogger(__name__)

ENGINE_MODULE = "worker.inference"
_STOP_SECONDS = 10
_PAUSE_SECONDS = 60
# Reading a large dataset takes a while.
_FIT_SECONDS = 120
_STATE_SECONDS = 2
# A process that has not begun to listen after this time has frozen at its start.
_START_SECONDS = 600
_WATCH_SECONDS = 1.0
_HEALTH_SECONDS = 3.0
# While a base model is loaded, libraries may hold the interpreter's lock for long.
_LOADING_SECONDS = 300.0
_FIRST_RESTART_SECONDS = 1.0
_LAST_RESTART_SECONDS = 30.0


class EngineProcess:
    """An engine of this worker. `on_change` is called when its address or what it serves changes."""

    def __init__(
        self,
        settings: Settings,
        on_change: Callable[[], None],
        *,
        module: str = ENGINE_MODULE,
        name: str = "engine",
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._module = module
        self._token = secrets.token_urlsafe(32)
        self._log_path = settings.data_dir / "logs" / f"{name}.log"
        self._device: dict[str, Any] = {}
        self._environment: dict[str, str] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._port: int | None = None
        # For each job on the device, the bytes that it needs there; None: all. Sent again after a restart.
        self._reserved: dict[str, int | None] = {}
        self._child: ChildProcess | None = None
        # Why the engine that listens is not usable; None while it moves.
        self.problem: str | None = None
        # Whether a base model is being loaded, as the engine itself has reported.
        self._is_loading = False
        self._thread = threading.Thread(target=self._keep_running, daemon=True, name="engine process")

    @property
    def url(self) -> str | None:
        """The engine's address for the API; None while it does not listen."""
        return self._url(self._settings.engine_host) if self._port else None

    @property
    def token(self) -> str:
        """What the API must send as its bearer token."""
        return self._token

    def start(self, device: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        """Start the process on the device as it was described, without waiting until it listens.

        `environment` is that of a process that sees this device alone.
        """
        self._device = dict(device)
        self._environment = dict(environment or {})
        self._thread.start()

    def stop(self) -> None:
        """End the process; running generations get a grace."""
        self._stopping.set()
        child = self._child
        if child is not None:
            child.ask_to_stop()
            if child.wait(_STOP_SECONDS) is None:
                child.kill()
        self._thread.join()

    def read_state(self) -> EngineState | None:
        """The engine's state; None while it does not answer, or does not move."""
        if self.problem is not None:
            return None
        try:
            response = self._call("GET", "/state", timeout=_STATE_SECONDS)
        except httpx.HTTPError:
            return None
        return EngineState.model_validate_json(response.content) if response else None

    def find_fit(self, request: PreflightRequest) -> MemoryFit | None:
        """Whether a job fits on the device with what the engine holds; None where that is unknown."""
        try:
            response = self._call("POST", "/room", json=request.model_dump(mode="json"), timeout=_FIT_SECONDS)
        except httpx.HTTPError as error:
            log.warning("Unknown whether the job fits on the device with serving, which pauses: %s", error)
            return None
        return MemoryFit.model_validate_json(response.content) if response else None

    def unload(self, adapter_ids: list[str]) -> None:
        """Have an external engine unload adapters that are deleted. Where it can't now, it is asked again."""
        try:
            self._call("POST", "/adapters/unload", json={"adapter_ids": adapter_ids}, timeout=_PAUSE_SECONDS)
        except httpx.HTTPError as error:
            log.warning("Deleted adapters can't be unloaded now: %s", error)

    @contextmanager
    def sharing(self, job_id: str, reserved_bytes: int) -> Iterator[None]:
        """Have the engine leave so much of the device to a job while the context lasts."""
        with self._reserving(job_id, reserved_bytes):
            yield

    @contextmanager
    def paused(self, job_id: str) -> Iterator[None]:
        """Have the engine leave the device to a job while the context lasts."""
        with self._reserving(job_id, None):
            yield

    @contextmanager
    def _reserving(self, job_id: str, reserved_bytes: int | None) -> Iterator[None]:
        self._change_reservations(lambda: self._reserved.update({job_id: reserved_bytes}))
        try:
            yield
        finally:
            self._change_reservations(lambda: self._reserved.pop(job_id, None))

    def _change_reservations(self, change: Callable[[], object]) -> None:
        with self._lock:
            change()
            try:
                self._send_reservations()
            except httpx.HTTPError:
                # It must not keep a job waiting; the restarted engine gets the request.
                log.exception("The engine did not answer; restarting it")
                if self._child is not None:
                    self._child.kill()
        self._on_change()

    def _send_reservations(self) -> None:
        """Have the engine pause where a job needs the whole device, else leave what all need together.

        Its state names the newest job, which may wait for that.
        """
        newest = next(reversed(self._reserved), None)
        if None in self._reserved.values():
            self._call("POST", "/pause", json={"job_id": newest}, timeout=_PAUSE_SECONDS)
            return
        self._call("POST", "/resume", timeout=_PAUSE_SECONDS)
        if newest is not None:
            total = sum(count or 0 for count in self._reserved.values())
            share = {"job_id": newest, "reserved_bytes": total}
            self._call("POST", "/share", json=share, timeout=_PAUSE_SECONDS)

    def _keep_running(self) -> None:
        delay_seconds = _FIRST_RESTART_SECONDS
        while not self._stopping.is_set():
            listened = self._run_once()
            if self._stopping.is_set():
                return
            delay_seconds = (
                _FIRST_RESTART_SECONDS if listened else min(2 * delay_seconds, _LAST_RESTART_SECONDS)
            )
            log.warning("The engine ended; starting it again in %.0f s", delay_seconds)
            self._stopping.wait(delay_seconds)

    def _run_once(self) -> bool:
        """Run one engine process to its end; returns whether it ever listened."""
        child = ChildProcess(self._module, self._request(), self._log_path, environment=self._environment)
        self._child = child
        line = _first_report(child)
        if line is not None:
            self._on_listening(Listening.model_validate_json(line).port)
            watching = threading.Thread(target=self._watch, args=(child,), daemon=True, name="engine watch")
            watching.start()
            while (report := child.reports.get()) is not None:
                self._is_loading = StateChanged.model_validate_json(report).is_loading
                # Its state has changed: the API should not have to wait for the next heartbeat.
                self._on_change()
            watching.join()
        self._port = self.problem = None
        self._is_loading = False
        self._on_change()
        status = child.wait()
        child.close()
        if status != 0:
            log.error("The engine ended with status %s: %s", status, child.log_tail(1000).strip())
        return line is not None

    def _watch(self, child: ChildProcess) -> None:
        """Kill the child once it has been silent, or has not moved, for as long as the settings allow."""
        silent_seconds = stalled_seconds = 0.0
        looked_at = time.monotonic()
        while child.exit_status is None and not self._stopping.wait(_WATCH_SECONDS):
            health = self._read_health()
            stall = _describe_stall(health)
            problem = stall or (health.problem if health else None)
            now = time.monotonic()
            # Not more than a look takes: this process may have been stopped meanwhile itself.
            passed_seconds, looked_at = min(now - looked_at, _WATCH_SECONDS + _HEALTH_SECONDS), now
            silent_seconds = silent_seconds + passed_seconds if health is None else 0.0
            stalled_seconds = stalled_seconds + passed_seconds if stall else 0.0
            if (self.problem is None) != (problem is None):
                log.log(logging.WARNING if problem else logging.INFO, problem or "The engine moves again")
                self.problem = problem
                self._on_change()
            if self._is_over(silent_seconds, stalled_seconds):
                log.error("The engine has not moved for %.0f s; killing it", stalled_seconds)
                child.kill()

    def _is_over(self, silent_seconds: float, stalled_seconds: float) -> bool:
        settings = self._settings
        limits = (settings.engine_silent_seconds, settings.engine_stall_seconds)
        if self._is_loading:
            limits = (max(limits[0], _LOADING_SECONDS), max(limits[1], _LOADING_SECONDS))
        return silent_seconds >= limits[0] or stalled_seconds >= limits[1]

    def _read_health(self) -> EngineHealth | None:
        """The engine's health; None where it is silent, or sends what no engine would send."""
        try:
            response = self._call("GET", "/health", timeout=_HEALTH_SECONDS)
            return EngineHealth.model_validate_json(response.content) if response else None
        except (httpx.HTTPError, ValidationError):
            return None

    def _on_listening(self, port: int) -> None:
        with self._lock:
            self._port = port
            if self._reserved:
                self._send_reservations()
        log.info("The engine listens on port %d", port)
        self._on_change()

    def _request(self) -> EngineRequest:
        settings = self._settings
        return EngineRequest(
            host=settings.engine_host,
            port=settings.engine_port,
            token=self._token,
            models_folder=settings.models_folder,
            artifacts_url=settings.artifacts_url,
            cache_folder=settings.cache_folder,
            cache_bytes=settings.cache_bytes,
            device=self._device,
            vllm=_vllm_target(settings),
            standby=settings.training_standby,
            max_rows=settings.engine_max_rows,
            adapter_slots=settings.engine_adapter_slots,
            cache_share=settings.engine_cache_share,
            max_waiting=settings.engine_max_waiting,
            max_base_models=settings.engine_max_base_models,
            switch_wait_seconds=settings.engine_switch_wait_seconds,
            weights=settings.engine_weights,
            speculation=settings.engine_speculation,
            gpu_policy=settings.gpu_policy,
            training_path=settings.training_path,
        )

    def _call(self, method: str, path: str, *, timeout: float, json: object = None) -> httpx.Response | None:
        """The engine's response to a request, or None while it does not listen."""
        if self._port is None:
            return None
        headers = {"Authorization": f"Bearer {self._token}"}
        url = f"http://{self._local_host()}:{self._port}{path}"
        return httpx.request(method, url, headers=headers, json=json, timeout=timeout).raise_for_status()

    def _local_host(self) -> str:
        host = self._settings.engine_host
        return "127.0.0.1" if host in ("0.0.0.0", "::") else host

    def _url(self, host: str) -> str:
        if self._settings.engine_url:
            return self._settings.engine_url
        reachable = socket.gethostname() if host in ("0.0.0.0", "::") else host
        return f"http://{reachable}:{self._port}"


def _vllm_target(settings: Settings) -> VllmTarget | None:
    if settings.engine is not EngineKind.VLLM:
        return None
    key = settings.vllm_api_key.get_secret_value() if settings.vllm_api_key else None
    return VllmTarget(url=settings.vllm_url, api_key=key, adapters_folder=settings.vllm_adapters_dir)


def _describe_stall(health: EngineHealth | None) -> str | None:
    if health is None:
        return "The engine does not answer; it is started again if that lasts."
    if not health.is_moving:
        return "The engine does not move; it is started again if that lasts."
    return None


def _first_report(child: ChildProcess) -> bytes | None:
    """The child's first report; None where it ended without one. A child that stays silent is killed."""
    try:
        return child.reports.get(timeout=_START_SECONDS)
    except queue.Empty:
        log.error("The engine has not begun to listen after %d s; killing it", _START_SECONDS)
        child.kill()
        return child.reports.get()
