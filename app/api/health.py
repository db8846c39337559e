"""GET /health and /ready: liveness and readiness."""

import asyncio
import tempfile
from pathlib import Path
from typing import Literal

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from app.api.deps import Services, ServicesDep
from app.api.schemas import WorkerRead
from app.core.engine import workers
from app.core.engine.client import EngineClient
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database, is_migrated
from app.core.storage.disk import find_full

router = APIRouter(tags=["Service"])


class HealthRead(BaseModel):
    """The process answers."""

    status: Literal["ok"] = Field("ok", description="Always `ok`.")


class ReadinessRead(BaseModel):
    """Whether jobs would run and `/generate` would answer."""

    ready: bool = Field(description="Whether nothing is missing; the status is 503 where it is false.")
    reasons: list[str] = Field(description="What is missing; or, when ready, what has to wait for now.")
    workers: list[WorkerRead] = Field(description="Workers that are alive.")


@router.get("/health", summary="Liveness")
async def show_health() -> HealthRead:
    """The process is up. Needs no key."""
    # Async: it waits for no thread, however many requests are busy.
    return HealthRead()


@router.get(
    "/ready",
    summary="Readiness",
    responses={503: {"model": ReadinessRead, "description": "Not ready; `reasons` says why."}},
)
async def show_readiness(services: ServicesDep, response: Response) -> ReadinessRead:
    """Whether the database is migrated, the store and an engine answer, a worker trains. Needs no key."""
    unreachable = await services.store_check.find_problem()
    readiness, engines = await to_thread.run_sync(_read_readiness, services.settings, services.database)
    if full := await to_thread.run_sync(_find_full, services):
        readiness.ready = False
        readiness.reasons = full + readiness.reasons
    if unreachable:
        readiness.ready = False
        readiness.reasons = [unreachable, *readiness.reasons]
    if readiness.ready and not await _any_is_moving(services.engines, engines):
        readiness.ready = False
        readiness.reasons = [
            "The engine does not answer: it has frozen and is started again, or its worker was killed."
        ]
    if not readiness.ready:
        response.status_code = 503
    return readiness


def _find_full(services: Services) -> list[str]:
    """A sentence for each folder whose disk takes no more files."""
    # Uploads are spooled to the temporary folder first.
    folders = [services.settings.data_dir, Path(tempfile.gettempdir())]
    if services.store.local_folder and services.store.local_folder.is_dir():
        folders.append(services.store.local_folder)
    return [f"The disk of {folder} is full: free some space." for folder in find_full(folders)]


def _read_readiness(
    settings: Settings, database: Database
) -> tuple[ReadinessRead, list[tuple[str, str | None]]]:
    """Readiness as far as the database shows it, and the addresses and tokens of the engines in it."""
    try:
        if not is_migrated(database):
            reason = "The database has not been migrated: start the API with `python -m app`."
            return ReadinessRead(ready=False, reasons=[reason], workers=[]), []
        with database.snapshot() as session:
            alive = workers.find_alive(session, lease_seconds=settings.lease_seconds)
    except SQLAlchemyError:
        return ReadinessRead(ready=False, reasons=["The database can't be reached."], workers=[]), []
    missing = _missing(alive)
    shown = [WorkerRead.from_row(worker) for worker in alive]
    engines = [(worker.engine_url, worker.engine_token) for worker in alive if worker.engine_url]
    return ReadinessRead(ready=not missing, reasons=missing or _busy(shown), workers=shown), engines


async def _any_is_moving(client: EngineClient, engines: list[tuple[str, str | None]]) -> bool:
    """Whether any engine responds: the row of a killed worker stays in the database for one more lease."""
    return any(await asyncio.gather(*(client.is_moving(url, token) for url, token in engines)))


def _missing(alive: list[tables.WorkerRow]) -> list[str]:
    if not alive:
        return ["No worker is alive: start one with `python -m worker`."]
    serving = [worker for worker in alive if "serve" in worker.roles]
    reasons = []
    if not any("train" in worker.roles for worker in alive):
        reasons.append("No worker trains: jobs wait. Start one with `python -m worker --role train`.")
    if not serving:
        reasons.append("No worker serves: /generate can't answer. Start `python -m worker --role serve`.")
    elif not any(worker.engine_url for worker in serving):
        reasons.append("The engine is still starting.")
    return reasons + [f"Worker {worker.id}: {problem}" for worker in alive for problem in worker.problems]


def _busy(alive: list[WorkerRead]) -> list[str]:
    """What requests to the engines wait for now."""
    states = [worker.engine for worker in alive if worker.engine]
    jobs = sorted({state.paused_by for state in states if state.paused_by})
    reasons = [f"Serving is paused: job {job_id} has the GPU." for job_id in jobs]
    for loading in [state.loading for state in states if state.loading]:
        since = loading.since.isoformat(timespec="seconds").replace("+00:00", "Z")
        reasons.append(f"An engine has been loading the base model {loading.base_model.name} since {since}.")
    for state in states:
        # Requests for a base model that is loaded wait for a place in the batch, not for the model.
        served = [*state.loaded, *([state.loading.base_model] if state.loading else [])]
        busy = ", ".join(base.name for base in served) or "no base model"
        for waiting in [one for one in state.waiting if one.base_model not in served]:
            missing = f"The base model {waiting.base_model.name} is not loaded"
            reasons.append(f"{missing}, and the engine is busy with {busy}. Waiting for it: {waiting.count}.")
    return reasons
