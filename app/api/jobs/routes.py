"""Jobs: submit, list, show, cancel, pause, resume, retry, delete; `history.py` has the rest."""

import shutil
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from fastapi.openapi.models import Example
from sqlalchemy.orm import Session

from app.api.deps import MAX_PAGE, After, JobId, Limit, ServicesDep
from app.api.http.access.auth import CallerDep
from app.api.http.errors import documented
from app.api.http.idempotency import IdempotentRequestDep
from app.api.http.store_threads import in_store_threads
from app.api.jobs import submission
from app.api.jobs.schemas import (
    FinalEvaluationRead,
    JobChange,
    JobDetailsRead,
    JobPushRead,
    JobRead,
    LossesPage,
    LossesRead,
)
from app.api.schemas import Page
from app.core.engine import workers
from app.core.jobs import (
    abilities,
    checkpoints,
    final_evaluation,
    inputs as job_inputs,
    losses as job_losses,
    placement,
    pushes,
    records as job_records,
)
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState
from app.core.storage.tables import JobRow
from app.core.work import turns

router = APIRouter(prefix="/jobs", tags=["Jobs"])

SPEC_EXAMPLES: dict[str, Example] = {
    "recipe": {
        "summary": "The reference recipe: 4-bit NF4, LoRA r=64, one epoch",
        "value": {"base_model": "SmolLM2-135M-Instruct", "dataset": "ds_4kq1v9x2m7ahc3zt"},
    },
    "own settings": {
        "summary": "Some settings of your own",
        "value": {
            "base_model": "SmolLM2-135M-Instruct",
            "dataset": "ds_4kq1v9x2m7ahc3zt",
            "name": "support-bot",
            "lora": {"r": 16, "alpha": 32, "target_modules": "all-linear"},
            "training": {"num_train_epochs": 3, "learning_rate": 0.0002, "validation_split": 0.1},
        },
    },
    "trackers and the Hub": {
        "summary": "Curves in Weights & Biases, the finished adapter on the Hub",
        "value": {
            "base_model": "SmolLM2-135M-Instruct",
            "dataset": "ds_4kq1v9x2m7ahc3zt",
            "report_to": ["tensorboard", "wandb"],
            "tracking": {"project": "support"},
            "push_to_hub": {"repository": "me/support-bot", "revision": "v2", "tags": ["support"]},
        },
    },
}


@router.post("", status_code=202, summary="Submit a job", responses=documented(404, 409, 429))
def submit_job(
    spec: Annotated[JobSpec, Body(openapi_examples=SPEC_EXAMPLES)],
    idempotent: IdempotentRequestDep,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> JobRead:
    """Put a fine-tuning job in the queue. Only `base_model` and `dataset` are needed.

    Where an engine runs and has the base model's files, what can't run on it is refused at once.
    """

    def create(session: Session) -> JobRead:
        resolved, max_queued = job_inputs.hold(session, spec), services.settings.max_queued_jobs
        row = job_records.submit(session, resolved, max_queued=max_queued, caller=caller, flush=False)
        return JobRead.from_row(row, job_records.count_waiting(session))

    job = idempotent.find_earlier(_find)
    if job is None:
        with services.database.snapshot() as session:
            workers.check_base_model(session, services.settings, spec.base_model)
            abilities.check_workers(session, services.settings, spec)
        submission.check_base_model(services, spec)
        job = idempotent.create(create, find=_find)
    response.headers["location"] = f"/jobs/{job.id}"
    return job


@router.get("", summary="List jobs")
def list_jobs(
    services: ServicesDep,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    search: Annotated[
        str | None,
        Query(max_length=200, description="Only jobs whose name, id, base model or notes contain this text."),
    ] = None,
    after: After = None,
    limit: Limit = 50,
) -> Page[JobRead]:
    """Jobs, the newest first."""
    with services.database.snapshot() as session:
        rows, cursor = job_records.find_page(session, state=state, search=search, after=after, limit=limit)
        positions = turns.find_places(session, JobRow, rows)
        needed = placement.find_waits(session, rows, lease_seconds=services.settings.lease_seconds)
    data = [JobRead.from_row(row, positions.get(row.id), waiting_for=needed.get(row.id)) for row in rows]
    return Page(data=data, next=cursor)


@router.get("/losses", summary="Training losses of several jobs")
def list_losses(
    services: ServicesDep,
    job: Annotated[list[str], Query(max_length=MAX_PAGE, description="Ids of jobs; repeat it for each.")],
    points: Annotated[int, Query(ge=1, le=1000, description="About how many losses of each job.")] = 50,
) -> LossesPage:
    """The training losses of several jobs in few points each, for small curves in a list.

    Jobs that are not there or have no loss yet are left out. `/jobs/{job_id}/metrics` has every point of one.
    """
    with services.database.snapshot() as session:
        found = job_losses.read_thinned(session, job, points=points)
    return LossesPage(data=[LossesRead(job=job_id, losses=losses) for job_id, losses in found.items()])


@router.get("/{job_id}", summary="Show a job", responses=documented(404))
def show_job(job_id: JobId, services: ServicesDep) -> JobDetailsRead:
    """State, progress, attempts, the error of a failed job, its runs in trackers, evaluation and push."""
    with services.database.snapshot() as session:
        row = job_records.get(session, job_id)
        positions = turns.find_places(session, JobRow, [row])
        needed = placement.find_waits(session, [row], lease_seconds=services.settings.lease_seconds)
        job = JobDetailsRead.from_row(row, positions.get(job_id), waiting_for=needed.get(job_id))
        found = final_evaluation.read(session, row)
        pushed = pushes.find(session, job_id)
        push = JobPushRead.from_row(pushed) if pushed else None
    evaluation = FinalEvaluationRead.make(found) if found else None
    return job.model_copy(update={"final_evaluation": evaluation, "push": push})


@router.patch("/{job_id}", summary="Change a job's notes or priority", responses=documented(404, 409))
def change_job(
    job_id: JobId, body: Annotated[JobChange, Body()], services: ServicesDep, caller: CallerDep
) -> JobRead:
    """Replace the metadata of a job in any state, or the priority of one that waits or is paused.

    Its other settings can't be changed.
    """
    with services.database.transaction() as session:
        if body.priority is not None:
            job_records.change_priority(session, job_id, body.priority, caller=caller)
        if body.metadata is not None:
            job_records.change_metadata(session, job_id, body.metadata)
        return _find(session, job_id)


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a job", responses=documented(404, 409))
def cancel_job(job_id: JobId, services: ServicesDep) -> JobRead:
    """End a waiting or paused job at once; a running one stops after its step and keeps a checkpoint."""
    with services.database.transaction() as session:
        return JobRead.from_row(job_records.request_cancel(session, job_id))


@router.post("/{job_id}/pause", status_code=202, summary="Pause a job", responses=documented(404, 409))
def pause_job(job_id: JobId, services: ServicesDep) -> JobRead:
    """Pause a waiting job at once; a running one after its step, with a checkpoint: it frees the GPU."""
    with services.database.transaction() as session:
        return JobRead.from_row(job_records.request_pause(session, job_id))


@router.post("/{job_id}/resume", status_code=202, summary="Resume a job", responses=documented(404, 409, 429))
def resume_job(job_id: JobId, services: ServicesDep) -> JobRead:
    """Queue a paused job again; it goes on from its last checkpoint, as if it had never stopped."""
    with services.database.transaction() as session:
        return _read(session, job_records.resume(session, job_id))


@router.post("/{job_id}/retry", status_code=202, summary="Retry a job", responses=documented(404, 409, 429))
def retry_job(job_id: JobId, services: ServicesDep) -> JobRead:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint, where there is one."""
    with services.database.transaction() as session:
        row = job_records.retry(session, job_id)
        job_inputs.hold(session, JobSpec.model_validate(row.spec))
        return _read(session, row)


@router.delete("/{job_id}", status_code=204, summary="Delete a job", responses=documented(404, 409))
@in_store_threads
def delete_job(job_id: JobId, services: ServicesDep) -> None:
    """Delete a job that has ended: its record, events, loss curve, checkpoints and logs.

    409 while an adapter that it made exists: delete that first. Datasets stay. A worker on another machine
    keeps the job's folder there.
    """
    with services.database.transaction() as session:
        job_records.delete(session, job_id)
    services.store.discard(checkpoints.name_folder(job_id))
    shutil.rmtree(services.settings.job_folder(job_id), ignore_errors=True)


def _find(session: Session, job_id: str) -> JobRead:
    return _read(session, job_records.get(session, job_id))


def _read(session: Session, row: JobRow) -> JobRead:
    return JobRead.from_row(row, turns.find_places(session, JobRow, [row]).get(row.id))
