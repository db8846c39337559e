"""/v1/fine_tuning/jobs: the native jobs in OpenAI's format. Stores nothing of its own."""

import re
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.openapi.models import Example
from sqlalchemy.orm import Session

from app.api.deps import MAX_PAGE, Services, ServicesDep
from app.api.http.access.auth import CallerDep
from app.api.http.digits import bounded_int
from app.api.http.idempotency import IdempotentRequestDep
from app.api.jobs import submission
from app.api.jobs.history import read_curve
from app.api.openai.fine_tuning_body import FineTuningJobBody
from app.api.openai.fine_tuning_history import FineTuningJobCheckpoint, FineTuningJobEvent, event_id
from app.api.openai.fine_tuning_job import FineTuningJob
from app.api.openai.lists import OpenAIPage
from app.api.openai.models import find_origin
from app.core.adapters import records as adapter_records
from app.core.datasets.records import get_arrived
from app.core.errors import InvalidRequest
from app.core.jobs import abilities, events, fine_tuning, inputs as job_inputs, records as job_records
from app.core.jobs.events import Metrics
from app.core.specs.job import JobSpec
from app.core.specs.patterns import METADATA_KEY
from app.core.storage import tables
from app.core.work.failures import WorkFailure

router = APIRouter(prefix="/fine_tuning/jobs")

_EXAMPLES: dict[str, Example] = {
    "auto": {
        "summary": "A file and a base model",
        "value": {"model": "SmolLM2-135M-Instruct", "training_file": "ds_4kq1v9x2m7ahc3zt"},
    },
    "own settings": {
        "summary": "Hyperparameters, and settings that OpenAI does not have",
        "value": {
            "model": "SmolLM2-135M-Instruct",
            "training_file": "ds_4kq1v9x2m7ahc3zt",
            "suffix": "support",
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto", "r": 16}},
            },
        },
    },
    "preferences": {
        "summary": "A file of preferences",
        "value": {
            "model": "SmolLM2-135M-Instruct",
            "training_file": "ds_4kq1v9x2m7ahc3zt",
            "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}},
        },
    },
}
_METADATA = re.compile(r"metadata\[(.*)\]")
JobId = Annotated[str, Path(description="The job's id.", examples=["job_4kq1v9x2m7ahc3zt"])]
After = Annotated[str | None, Query(max_length=64, description="Id of the last item seen.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items in the answer.")]


@router.post("", summary="Create a fine-tuning job")
def create_job(
    body: Annotated[FineTuningJobBody, Body(openapi_examples=_EXAMPLES)],
    idempotent: IdempotentRequestDep,
    services: ServicesDep,
    caller: CallerDep,
) -> FineTuningJob:
    """Queue a job. Its files are validated first: where they can't be trained on, it has failed at once."""
    settings = services.settings

    def read(session: Session) -> tuple[JobSpec, WorkFailure | None]:
        base_model, adapter_id = find_origin(session, settings, body.model)
        training = get_arrived(session, body.training_file, param="training_file")
        spec = body.as_spec(base_model=base_model, continue_from=adapter_id, rows=training.rows)
        failure = fine_tuning.find_failure(training, "training", spec.method)
        if body.validation_file:
            validation = get_arrived(session, body.validation_file, param="validation_file")
            failure = failure or fine_tuning.find_failure(validation, "validation", spec.method)
        return spec, failure

    def create(session: Session) -> FineTuningJob:
        spec, failure = read(session)
        if failure is None:
            spec = job_inputs.hold(session, spec)
        row = job_records.submit(session, spec, max_queued=settings.max_queued_jobs, caller=caller)
        return _show(session, job_records.fail_unstarted(session, row.id, failure) if failure else row)

    if earlier := idempotent.find_earlier(_find):
        return earlier
    with services.database.snapshot() as session:
        spec, failure = read(session)
        abilities.check_workers(session, settings, spec)
    if failure is None:
        submission.check_base_model(services, spec)
    return idempotent.create(create, find=_find)


@router.get("", summary="List fine-tuning jobs")
def list_jobs(
    request: Request, services: ServicesDep, after: After = None, limit: Limit = 20
) -> OpenAIPage[FineTuningJob]:
    """Jobs, the newest first. `metadata[key]=value` takes those with it, `metadata=null` those without."""
    with services.database.snapshot() as session:
        rows, cursor = job_records.find_page(
            session, metadata=_read_metadata(request), after=after, limit=limit
        )
        last = events.read_last_metrics(session, [row.id for row in rows])
    found = [FineTuningJob.from_row(row, trained_tokens=_tokens(last.get(row.id))) for row in rows]
    return OpenAIPage(data=found, has_more=cursor is not None)


@router.get("/{job_id}", summary="Show a fine-tuning job")
def show_job(job_id: JobId, services: ServicesDep) -> FineTuningJob:
    """One job."""
    with services.database.snapshot() as session:
        return _find(session, job_id)


@router.post("/{job_id}/cancel", summary="Cancel a fine-tuning job")
def cancel_job(job_id: JobId, services: ServicesDep) -> FineTuningJob:
    """End a job; a running one stops after its step."""
    return _change(services, job_records.request_cancel, job_id)


@router.post("/{job_id}/pause", summary="Pause a fine-tuning job")
def pause_job(job_id: JobId, services: ServicesDep) -> FineTuningJob:
    """Pause a job; a running one stops after its step, with a checkpoint, and frees the GPU."""
    return _change(services, job_records.request_pause, job_id)


@router.post("/{job_id}/resume", summary="Resume a fine-tuning job")
def resume_job(job_id: JobId, services: ServicesDep) -> FineTuningJob:
    """Queue a paused job again; it goes on as if it had never stopped."""
    return _change(services, job_records.resume, job_id)


@router.get("/{job_id}/events", summary="Events of a fine-tuning job")
def list_events(
    job_id: JobId, services: ServicesDep, after: After = None, limit: Limit = 20
) -> OpenAIPage[FineTuningJobEvent]:
    """What happened to a job, the newest first."""
    before = _seq_of(job_id, after) if after else None
    with services.database.snapshot() as session:
        job_records.get(session, job_id)
        found = events.read_newest(session, job_id, before=before, limit=limit + 1)
    shown = [FineTuningJobEvent.from_event(job_id, event) for event in found[:limit]]
    return OpenAIPage(data=shown, has_more=len(found) > limit)


@router.get("/{job_id}/checkpoints", summary="Checkpoints of a fine-tuning job")
def list_checkpoints(
    job_id: JobId, services: ServicesDep, after: After = None, limit: Limit = 10
) -> OpenAIPage[FineTuningJobCheckpoint]:
    """The adapters that the job kept at the ends of epochs, and its finished one; the newest first."""
    with services.database.snapshot() as session:
        job = job_records.get(session, job_id)
        found = ([job.adapter] if job.adapter else []) + adapter_records.find_checkpoints(session, job_id)
    ids = [adapter.id for adapter in found]
    if after is not None and after not in ids:
        raise _bad_cursor(after)
    rest = found[ids.index(after) + 1 :] if after else found
    points = read_curve(services.database, job_id)
    shown = [FineTuningJobCheckpoint.from_row(adapter, job, points) for adapter in rest[:limit]]
    return OpenAIPage(data=shown, has_more=len(rest) > limit)


def _change(
    services: Services, change: Callable[[Session, str], tables.JobRow], job_id: str
) -> FineTuningJob:
    with services.database.transaction() as session:
        return _show(session, change(session, job_id))


def _find(session: Session, job_id: str) -> FineTuningJob:
    return _show(session, job_records.get(session, job_id))


def _show(session: Session, row: tables.JobRow) -> FineTuningJob:
    last = events.read_last_metrics(session, [row.id])
    return FineTuningJob.from_row(row, trained_tokens=_tokens(last.get(row.id)))


def _tokens(last: Metrics | None) -> int | None:
    return last.tokens if last else None


def _read_metadata(request: Request) -> dict[str, str] | None:
    """The filter `metadata[key]=value` of the query; None: no filter; empty: jobs without metadata."""
    asked = {
        found[1]: value
        for name, value in request.query_params.multi_items()
        if (found := _METADATA.fullmatch(name))
    }
    for key in asked:
        if not re.match(METADATA_KEY, key):
            raise InvalidRequest(f"{key!r} is no possible key.", param="metadata")
    if asked:
        return asked
    return {} if request.query_params.get("metadata") in ("", "null") else None


def _seq_of(job_id: str, event: str) -> int:
    seq = event.rpartition("_")[2]
    # The id is rebuilt from its number: an id of another job, or in another form, differs from it.
    number = bounded_int(seq) if seq.isdecimal() and seq.isascii() else None
    if number is None or event_id(job_id, number) != event:
        raise _bad_cursor(event)
    return min(number, 2**31 - 1)


def _bad_cursor(after: str) -> InvalidRequest:
    return InvalidRequest(
        f"The cursor {after!r} names nothing that exists.", param="after", hint="Start again without `after`."
    )
