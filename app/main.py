"""Puts the API together: routers, middleware, error handlers, and what runs in the background."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import lru_cache

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import BaseRoute

from app.api import health, status, storage
from app.api.adapters import imports as adapter_imports, routes as adapter_routes
from app.api.adapters.importer import Importer
from app.api.aliases import routes as alias_routes
from app.api.base_models import downloads as download_routes, removal, routes as base_model_routes
from app.api.datasets import hub, preview, routes as dataset_routes, samples
from app.api.deps import Services
from app.api.evaluations import routes as evaluation_routes
from app.api.evaluations.progress import ProgressStreams
from app.api.exports import routes as export_routes
from app.api.generate import routes as generate_routes
from app.api.generate.lookups import TargetLookups
from app.api.http import errors
from app.api.http.access.auth import DOCS_ASSETS, AuthMiddleware, bearer
from app.api.http.access.limits import RequestLimits
from app.api.http.access.usage_meter import UsageMeter
from app.api.http.addresses import TrailingSlashMiddleware, refuse_unknown_parameters
from app.api.http.bodies.limit import BodyLimitMiddleware
from app.api.http.head_requests import HeadMiddleware
from app.api.http.origins.cors import AllowedOrigins
from app.api.http.origins.guard import OriginGuardMiddleware
from app.api.http.pacing import PacingMiddleware
from app.api.http.request_metrics import RequestMetrics
from app.api.http.requests import CounterMiddleware, RequestMiddleware
from app.api.http.security_headers import SecurityHeadersMiddleware
from app.api.http.store_threads import STORE_THREADS, StoreCheck
from app.api.jobs import history, preflight, routes as job_routes, samples as job_samples
from app.api.jobs.event_stream import EventStreams
from app.api.keys import routes as key_routes, usage as usage_routes
from app.api.metrics import routes as metric_routes
from app.api.openai import chat, completions, embeddings, files, fine_tuning, models
from app.api.openai.errors import DOCUMENTED, OpenAIErrors
from app.api.openai.evals import routes as eval_routes, runs as eval_runs
from app.api.openai.graders import routes as grader_routes
from app.api.openai.responses import routes as response_routes
from app.api.openai.responses.background import BackgroundResponses
from app.api.webhooks import routes as webhook_routes
from app.api.webhooks.deliverer import Deliverer
from app.core.base_models import downloads
from app.core.chat import responses as stored_responses
from app.core.datasets import openai_files
from app.core.engine import workers
from app.core.engine.client import EngineClient
from app.core.graders.python_process import PythonProcesses
from app.core.jobs import queue
from app.core.retention import stored
from app.core.settings import Settings
from app.core.storage import idempotency
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.group_commit import GroupCommit
from app.core.storage.outages import log_unless_away
from app.core.storage.scratch import Scratch, remove_abandoned
from app.core.webhooks import deliveries
from app.dashboard import pages

_FORGET_WORKER_AFTER_LEASES = 20
_RETENTION_SECONDS = 3600
_MEASURED_EACH_SWEEP = 10
_DESCRIPTION = """
Fine-tune language models with 4-bit QLoRA, and ask every finished adapter at once.

Upload a dataset, submit a job, follow its log, generate:

    curl -F file=@rows.jsonl localhost:8000/datasets
    curl -H 'Content-Type: application/json' -d '{"base_model": "…", "dataset": "ds_…"}' localhost:8000/jobs
    curl -N 'localhost:8000/jobs/job_…/logs?follow=true'
    curl -H 'Content-Type: application/json' -d '{"adapter": "ad_…", "prompt": "…"}' localhost:8000/generate

Every error has one shape: `{"error": {"type", "code", "message", "param", "hint"}}`; under `/v1` OpenAI's.
"""
_TAGS = [
    {"name": "Datasets", "description": "Files of training rows."},
    {"name": "Jobs", "description": "Fine-tuning jobs: submit, follow, cancel, retry."},
    {"name": "Models", "description": "Base models that may be named."},
    {"name": "Adapters", "description": "What finished jobs made."},
    {"name": "Aliases", "description": "Names that stay while the model behind them changes."},
    {"name": "Exports", "description": "Adapters in other formats, compared with the live one."},
    {"name": "Evaluations", "description": "Models that are asked the same rows, graded and compared."},
    {"name": "Generate", "description": "Text from an adapter or a base model."},
    {"name": "Webhooks", "description": "Who is told when a job ends."},
    {"name": "Keys", "description": "Who may do what, how much of it, and what was used."},
    {"name": "OpenAI", "description": "The same for clients of the OpenAI API: base URL `/v1`."},
    {"name": "Service", "description": "Health, readiness, counters."},
]
_log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API. The database must have been migrated: `python -m app` does it first."""
    services = _services(settings or Settings())
    # The pages of /docs come from this process: the box may have no internet.
    app = FastAPIOffline(
        static_url=DOCS_ASSETS,
        title="Tunesmith",
        version="0.1.0",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.services = services
    errors.install(app)
    # The last one added is the outermost. From the outside: turns, a slash at the end, security headers,
    # allowed origins, counters, HEAD as GET, OpenAI's errors, request ids, the origin, the key, the body.
    app.add_middleware(BodyLimitMiddleware, settings=services.settings)
    app.add_middleware(
        AuthMiddleware,
        settings=services.settings,
        database=services.database,
        limits=RequestLimits(services.database, services.usage_meter),
    )
    app.add_middleware(OriginGuardMiddleware, settings=services.settings, database=services.database)
    app.add_middleware(RequestMiddleware)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(CounterMiddleware, metrics=services.request_metrics)
    if services.settings.allowed_origins:
        app.add_middleware(AllowedOrigins, origins=services.settings.allowed_origins)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(TrailingSlashMiddleware)
    app.add_middleware(PacingMiddleware)
    app.router.routes.extend(_routes())
    pages.install(app)
    return app


@lru_cache
def _routes() -> list[BaseRoute]:
    """The routes of every router. Made once: FastAPI builds the validators of a route with each inclusion."""
    router = APIRouter()
    # A request is compared with one route after another: those that are asked most come first.
    for module in (
        chat,
        completions,
        response_routes,
        embeddings,
        models,
        files,
        fine_tuning,
        grader_routes,
        eval_routes,
        eval_runs,
    ):
        router.include_router(
            module.router, prefix="/v1", tags=["OpenAI"], dependencies=[Depends(bearer)], responses=DOCUMENTED
        )
    for module in (
        generate_routes,
        hub,
        dataset_routes,
        preview,
        samples,
        preflight,
        job_routes,
        history,
        job_samples,
        download_routes,
        base_model_routes,
        adapter_routes,
        adapter_imports,
        alias_routes,
        export_routes,
        evaluation_routes,
        status,
        storage,
        webhook_routes,
        key_routes,
        usage_routes,
    ):
        dependencies = [Depends(bearer), Depends(refuse_unknown_parameters)]
        responses = errors.documented(401, 403, 422, 429)
        router.include_router(module.router, dependencies=dependencies, responses=responses)
    router.include_router(health.router)
    router.include_router(metric_routes.router)
    return router.routes


def _services(settings: Settings) -> Services:
    database = Database(settings.database_url)
    store = ArtifactStore(settings.artifacts_url)
    engines = EngineClient()
    return Services(
        settings=settings,
        database=database,
        store=store,
        streams=EventStreams(database),
        progress=ProgressStreams(database),
        engines=engines,
        lookups=TargetLookups(settings, database),
        request_metrics=RequestMetrics(),
        usage_meter=UsageMeter(database),
        deliverer=Deliverer(database, settings),
        importer=Importer(database, settings, store, engines),
        background_responses=BackgroundResponses(database, settings, engines),
        python_graders=PythonProcesses(settings),
        commits=GroupCommit(database),
        scratch=Scratch(settings.data_dir),
        store_threads=CapacityLimiter(STORE_THREADS),
        store_check=StoreCheck(store),
    )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    for path in await to_thread.run_sync(remove_abandoned, services.settings.data_dir):
        _log.info("Removed %s, which a killed process left", path)
    loops = [_sweep(services), _remove_aged(services), services.deliverer.run(), services.importer.run()]
    loops.append(services.usage_meter.run())
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        services.streams.close()
        services.progress.close()
        await services.background_responses.close()
        await services.deliverer.close()
        await services.usage_meter.write()
        await services.engines.close()
        services.database.close()
        services.scratch.close()


async def _sweep(services: Services) -> None:
    """Requeue the jobs of dead workers, until cancelled."""
    while True:
        try:
            await to_thread.run_sync(sweep_once, services)
        except Exception as error:
            # The boundary of the loop: one failed sweep must not end it.
            log_unless_away(_log, "Jobs of dead workers can't be looked for now", error)
        await asyncio.sleep(services.settings.lease_seconds / 3)


async def _remove_aged(services: Services) -> None:
    """Delete what is older than the settings say, once an hour, until cancelled."""
    while True:
        try:
            arguments = (services.settings, services.database, services.store)
            for kind, count in (await to_thread.run_sync(stored.remove_aged, *arguments)).items():
                _log.info("Deleted by age: %s of %d", kind, count)
            if count := await removal.remove_aged(services):
                _log.info("Deleted by age: %d base models", count)
        except Exception as error:
            # The boundary of the loop: one failed turn must not end it.
            log_unless_away(_log, "What is too old can't be deleted now", error)
        await asyncio.sleep(_RETENTION_SECONDS)


def sweep_once(services: Services) -> None:
    """Requeue jobs whose lease has expired; delete expired rows and files."""
    settings = services.settings
    with services.database.transaction() as session:
        for job_id, state in queue.requeue_expired(session, max_lost_attempts=settings.max_lost_attempts):
            _log.warning("The worker of job %s is gone; the job is %s now", job_id, state)
        older_than = settings.lease_seconds * _FORGET_WORKER_AFTER_LEASES
        workers.forget_dead(session, older_than_seconds=older_than)
        idempotency.prune(session)
        deliveries.prune(session)
        stored_responses.delete_expired(session)
        downloads.prune(session)
        expired = openai_files.delete_expired(session)
    services.background_responses.fail_abandoned()
    files.measure_results(services, limit=_MEASURED_EACH_SWEEP)
    for folder in expired:
        services.store.discard(folder)
