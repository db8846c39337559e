"""Builds the engine and runs it in a thread of its own; HTTP is served in the main thread."""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import torch
import uvicorn
import uvloop
from starlette.routing import Route
from transformers.utils import logging as transformers_logging

from app.core import garbage
from app.core.settings import EngineSpeculation, GpuPolicy
from app.core.storage.artifacts import ArtifactStore
from worker.base_models.service import BaseModelService
from worker.inference.adapters.cache import AdapterCache
from worker.inference.base_folders import BaseFolders
from worker.inference.batching.scheduler import Scheduler
from worker.inference.engine import Engine, EngineOptions
from worker.inference.general.paths import ServingPaths
from worker.inference.loading import load_runner
from worker.inference.preprocessing import Preprocessor
from worker.inference.service import Clients, ServedEngine, Service
from worker.inference.vllm.adapter_folders import AdapterFolders
from worker.inference.vllm.client import VllmClient
from worker.inference.vllm.engine import VllmEngine
from worker.inference.vllm.routes import unloading_routes
from worker.models.device import Device, find_device, free_memory_bytes
from worker.preflight.background_process import BackgroundProcess
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.service import PreflightService
from worker.processes.child import ParentLink
from worker.processes.logs import set_up_logging
from worker.processes.reports import EngineRequest, Listening, StateChanged
from worker.templates.rendering.pool import shared_pool

_ADAPTER_CACHE_BYTES = 4 << 30
# GPU memory that serving may still need: adapters of a higher rank, long prompts, CUDA graphs.
_SERVING_RESERVE_BYTES = 2 << 30
_STOP_GRACE_SECONDS = 10.0
_CLOSE_GRACE_SECONDS = 5
# After each step the engine's thread waits until another one gives the interpreter up: by default 5 ms.
_SWITCH_SECONDS = 0.001

_log = logging.getLogger(__name__)


def run(link: ParentLink, request: EngineRequest, background: BackgroundProcess) -> int:
    """Serve until the worker says stop. Returns the exit status."""
    set_up_logging()
    transformers_logging.disable_progress_bar()
    sys.setswitchinterval(_SWITCH_SECONDS)
    return uvloop.run(_serve(link, request, background))


class EngineThread(threading.Thread):
    """Runs the engine's loop, and calls `on_end` when it ends: the process then has to exit."""

    def __init__(self, engine: "RunningEngine", on_end: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="engine")
        self.has_failed = False
        self._engine = engine
        self._on_end = on_end

    def run(self) -> None:
        """Run until the engine is stopped or fails."""
        try:
            self._engine.run()
        except Exception:
            self.has_failed = True
            _log.exception("The engine failed")
        self._on_end()


class RunningEngine(ServedEngine, Protocol):
    """An engine that runs in a thread of its own. `reserved_bytes`: what jobs need of its device."""

    reserved_bytes: int

    def run(self) -> None: ...
    def stop(self, grace_seconds: float) -> Future[None]: ...


async def _serve(link: ParentLink, request: EngineRequest, background: BackgroundProcess) -> int:
    clients = Clients(asyncio.get_running_loop())
    device = Device.model_validate(request.device) if request.device else find_device()
    store = ArtifactStore(request.artifacts_url)
    routes: list[Route] = []
    base_folders = BaseFolders(request.models_folder)

    def on_change() -> None:
        link.send(StateChanged(is_loading=engine.state.loading is not None))

    engine: RunningEngine
    if request.vllm:
        folders = AdapterFolders(store, request.vllm.adapters_folder)
        engine = vllm = VllmEngine(
            partial(VllmClient, request.vllm.url, request.vllm.api_key), clients.deliver, folders, on_change
        )
        preprocessor = Preprocessor(base_folders, folders, device, None)
        routes = unloading_routes(vllm, request.token)
    else:
        paths = ServingPaths()
        engine = _make_engine(request, device, clients, on_change, paths, base_folders)
        adapters = AdapterCache(
            store,
            request.cache_folder,
            _ADAPTER_CACHE_BYTES,
            cache_bytes=request.cache_bytes,
            pins_memory=device.is_cuda,
        )
        preprocessor = Preprocessor(base_folders, adapters, device, paths)
    service = Service(
        engine,
        clients,
        preprocessor.prepare,
        token=request.token,
        max_waiting=request.max_waiting,
        is_ready=preprocessor.is_ready,
    )
    preflight = PreflightService(
        partial(_find_environment, request, device, engine),
        partial(_find_environment_coexisting, request, device),
        request.token,
        background,
    )
    app = service.app()
    app.routes.extend([*preflight.routes(), *routes])
    base_models = BaseModelService(lambda: engine.state, request.token, on_change)
    app.routes.extend(base_models.routes())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_CLOSE_GRACE_SECONDS,
        )
    )
    thread = EngineThread(engine, on_end=partial(setattr, server, "should_exit", True))
    shared_pool().start()
    garbage.exclude_what_is_loaded()
    collecting = asyncio.create_task(garbage.collect_by_the_clock())
    with _listen(request) as listener:
        link.watch(on_stop=lambda: _stop(engine))
        # The first report, which the worker waits for: the engine may report changes as soon as it runs.
        link.send(Listening(port=listener.getsockname()[1]))
        thread.start()
        await server.serve(sockets=[listener])
    collecting.cancel()
    preflight.close()
    engine.stop(grace_seconds=0)
    thread.join()
    return 1 if thread.has_failed else 0


def _make_engine(
    request: EngineRequest,
    device: Device,
    clients: Clients,
    on_change: Callable[[], None],
    paths: ServingPaths,
    folders: BaseFolders,
) -> Engine:
    scheduler = Scheduler(
        max_waiting=request.max_waiting,
        adapter_slot_count=request.adapter_slots,
        max_base_models=request.max_base_models,
    )
    options = EngineOptions(
        request.switch_wait_seconds,
        speculates=request.speculation is EngineSpeculation.AUTO,
        on_change=on_change,
        on_unsupported=paths.learn,
    )
    engine = Engine(
        lambda base: load_runner(
            request, device, base, reserved_bytes=engine.reserved_bytes, folders=folders
        ),
        clients.deliver,
        scheduler,
        options=options,
    )
    return engine


def _stop(engine: RunningEngine) -> None:
    engine.stop(_STOP_GRACE_SECONDS)


def _listen(request: EngineRequest) -> socket.socket:
    family = socket.AF_INET6 if ":" in request.host else socket.AF_INET
    return socket.create_server((request.host, request.port), family=family, backlog=1024)


def _find_environment(request: EngineRequest, device: Device, engine: RunningEngine) -> PreflightEnvironment:
    """The environment of a job that has the device alone.

    Memory that pausing the serving frees, or that another job holds, counts as free.
    """
    is_busy = (engine.state.paused_by or engine.state.shares_with) is not None
    coexists = request.gpu_policy is GpuPolicy.COEXIST
    own_bytes = torch.cuda.memory_reserved() if device.is_cuda and not coexists else 0
    free_bytes = device.memory_bytes if is_busy else free_memory_bytes(device) + own_bytes
    return _make_environment(request, device, free_bytes, is_busy=is_busy)


def _find_environment_coexisting(request: EngineRequest, device: Device) -> PreflightEnvironment:
    """The environment of a job that trains while serving continues, with a reserve for serving."""
    return _make_environment(
        request, device, free_memory_bytes(device) - _SERVING_RESERVE_BYTES, is_busy=False
    )


def _make_environment(
    request: EngineRequest, device: Device, free_bytes: int, *, is_busy: bool
) -> PreflightEnvironment:
    return PreflightEnvironment(
        models_folder=request.models_folder,
        artifacts_url=request.artifacts_url,
        cache_folder=request.cache_folder,
        device=device,
        free_bytes=free_bytes,
        is_busy=is_busy,
        path=request.training_path,
    )
