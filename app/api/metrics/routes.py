"""GET /metrics in Prometheus' text format."""

import asyncio
from collections.abc import Sequence

from anyio import to_thread
from fastapi import APIRouter, Depends, Response
from prometheus_client import generate_latest

from app.api.deps import Services, ServicesDep
from app.api.http.access.auth import bearer
from app.api.http.errors import documented
from app.api.metrics.database_series import DatabaseSeries
from app.api.metrics.engine_series import EngineSeries, ScrapedEngine
from app.core.engine import workers

router = APIRouter(tags=["Service"])


@router.get(
    "/metrics",
    response_class=Response,
    summary="Prometheus metrics",
    dependencies=[Depends(bearer)],
    responses=documented(401) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def show_metrics(services: ServicesDep) -> Response:
    """What waits and runs, workers and their devices, engines, requests and their latency by route.

    Engines are asked for theirs at each scrape; one that is silent for a second is left out, and
    `tunesmith_engine_up` is 0.
    """
    engines = await to_thread.run_sync(_find_engines, services)
    texts = await asyncio.gather(*(services.engines.read_metrics(url, token) for _, url, token in engines))
    scraped = [ScrapedEngine(engine[0], text) for engine, text in zip(engines, texts, strict=True)]
    content = await to_thread.run_sync(_render, services, scraped)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _find_engines(services: Services) -> list[tuple[str, str, str | None]]:
    """The worker, the address and the token of each engine."""
    with services.database.snapshot() as session:
        alive = workers.find_alive(session, lease_seconds=services.settings.lease_seconds, role="serve")
        return [(one.id, one.engine_url, one.engine_token) for one in alive if one.engine_url]


def _render(services: Services, engines: Sequence[ScrapedEngine]) -> bytes:
    of_database = DatabaseSeries(services.settings, services.database)
    parts = [services.request_metrics.render(), *map(generate_latest, (of_database, EngineSeries(engines)))]
    return b"".join(parts)
