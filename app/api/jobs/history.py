"""The history of a job: its events, its log and its loss curve, read once or followed live."""

from collections.abc import Iterator
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from sse_starlette import EventSourceResponse
from starlette.responses import StreamingResponse

from app.api.deps import JobId, ServicesDep, accepts
from app.api.http.errors import documented
from app.api.http.server_sent_events import server_sent
from app.api.jobs import log_lines, loss_chart, loss_curve
from app.api.jobs.schemas import EventPage, LossCurveRead, LossPointRead
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Event
from app.core.storage.database import Database

router = APIRouter(prefix="/jobs/{job_id}", tags=["Jobs"])

KEEP_ALIVE_SECONDS = 15
_PAGE_EVENTS = 500
_MAX_SEQ = 2**31 - 1


@router.get(
    "/events",
    response_model=EventPage,
    summary="Events of a job",
    responses=documented(404)
    | {
        200: {
            "description": "A page; or with `Accept: text/event-stream` events as they come, until the job "
            "has ended: `id:` is the seq, `event:` the type, `data:` the event.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "As a stream: the job has ended, and `Last-Event-ID` was its last event."},
    },
)
async def list_events(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=_MAX_SEQ, description="Only events with a higher `seq`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most events in a page.")] = 100,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=_MAX_SEQ, description="As a stream: go on after this event; it goes before `after`."),
    ] = None,
) -> object:
    """Everything that happened to the job: logs, metrics, evaluations, checkpoints, changes of state."""
    if not accepts(request, "text/event-stream"):
        return await to_thread.run_sync(_read_page, services.database, job_id, after, limit)
    end = await services.streams.find_end(job_id)
    if end.has_ended and last_event_id is not None and last_event_id >= end.last_seq:
        # A browser's EventSource reconnects for ever, unless the status is 204.
        return Response(status_code=204)
    start = after if last_event_id is None else last_event_id
    found = services.streams.follow(job_id, _server_sent, after=start)
    return EventSourceResponse(found, ping=KEEP_ALIVE_SECONDS, sep="\n")


@router.get(
    "/logs",
    response_class=StreamingResponse,
    summary="Log of a job",
    responses=documented(404)
    | {200: {"description": "Lines of text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def read_log(
    job_id: JobId,
    services: ServicesDep,
    follow: Annotated[bool, Query(description="Go on until the job has ended (`curl -N`).")] = False,
) -> StreamingResponse:
    """The job's events as aligned lines of text."""
    await services.streams.find_end(job_id)
    if follow:
        followed = services.streams.follow(job_id, log_lines.render)
        return StreamingResponse(followed, media_type="text/plain")
    lines = (log_lines.render(event) for event in _read_all(services.database, job_id))
    return StreamingResponse(lines, media_type="text/plain")


@router.get(
    "/metrics",
    response_model=LossCurveRead,
    summary="Loss curve of a job",
    responses=documented(404) | {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def read_metrics(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    format: Annotated[
        Literal["json", "csv"] | None, Query(description="Default: by the `Accept` header, else JSON.")
    ] = None,
) -> object:
    """Training and evaluation loss by step, with learning rate, gradient norm, speed and device use."""
    points = read_curve(services.database, job_id)
    if format == "csv" or (format is None and accepts(request, "text/csv")):
        return Response(loss_curve.to_csv(points), media_type="text/csv")
    return LossCurveRead(data=points)


@router.get(
    "/metrics.svg",
    response_class=Response,
    summary="Loss curve as a picture",
    responses=documented(404)
    | {200: {"description": "SVG.", "content": {"image/svg+xml": {"schema": {"type": "string"}}}}},
)
def draw_metrics(job_id: JobId, services: ServicesDep) -> Response:
    """The loss curve as an SVG picture, for a browser or a README."""
    points = read_curve(services.database, job_id)
    with services.database.snapshot() as session:
        name = job_records.get(session, job_id).name
    return Response(loss_chart.draw(points, title=f"Loss of {name}"), media_type="image/svg+xml")


def _server_sent(event: Event) -> str:
    return server_sent(event.model_dump_json(), event=event.type, id=event.seq)


def _read_page(database: Database, job_id: str, after: int, limit: int) -> EventPage:
    with database.snapshot() as session:
        last_seq = job_records.get(session, job_id).last_event_seq
        found = events.read(session, job_id, after=after, limit=limit)
    has_more = bool(found) and found[-1].seq < last_seq
    return EventPage(data=found, next=found[-1].seq if has_more else None)


def _read_all(database: Database, job_id: str, *types: str) -> Iterator[Event]:
    """Every event in order, by pages: no transaction stays open while a slow client reads."""
    cursor = 0
    while True:
        with database.snapshot() as session:
            found = events.read(session, job_id, after=cursor, limit=_PAGE_EVENTS, types=types)
        yield from found
        if len(found) < _PAGE_EVENTS:
            return
        cursor = found[-1].seq


def read_curve(database: Database, job_id: str) -> list[LossPointRead]:
    """The loss curve of a job, by step. Raises JobNotFound."""
    with database.snapshot() as session:
        job_records.get(session, job_id)
    return loss_curve.from_events(_read_all(database, job_id, "metrics", "eval"))
