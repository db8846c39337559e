"""The warm-up imports all that a preflight needs, before the first request."""

import asyncio
import sys

from app.core.engine.preflight import PreflightRequest
from app.core.settings import TrainingPath
from tests.waiting import wait_for
from tests.worker.preflight.conftest import GPU, Ask, RunningEngine
from worker.preflight.background_process import BackgroundProcess
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import run_preflight
from worker.preflight.warm_up import warm_up


def find_missing_imports(request: PreflightRequest, environment: PreflightEnvironment) -> list[str]:
    """In the background process: the modules that a preflight imports."""
    before = set(sys.modules)
    run_preflight(request, environment)
    return sorted(set(sys.modules) - before)


def test_the_first_preflight_after_the_warm_up_imports_nothing(
    ask: Ask, environment: PreflightEnvironment
) -> None:
    on_gpu = environment.model_copy(update={"device": GPU})

    async def preflight() -> list[str]:
        process = BackgroundProcess()
        try:
            process.start(warm_up, GPU.model_dump(), TrainingPath.AUTO)
            return await process.run(find_missing_imports, ask(), on_gpu)
        finally:
            process.close()

    assert asyncio.run(preflight()) == []


def test_an_engine_on_standby_warms_up_by_itself(engine: RunningEngine) -> None:
    ready = "Ready for preflights"
    wait_for(lambda: ready in engine.process.log_tail(100_000), ready, timeout_seconds=60)
