"""Shares the GPU between a job and serving, as the GPU policy says. Knows no torch."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC
from typing import Protocol

from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.engine.preflight import DatasetRef, MemoryFit, PreflightRequest
from app.core.errors import TunesmithError
from app.core.jobs import continuation, records as job_records
from app.core.settings import GpuPolicy
from app.core.specs.job import JobSpec

Describe = Callable[[], PreflightRequest]

log = logging.getLogger(__name__)


class SharedEngine(Protocol):
    """The engine that shares its device with a job."""

    def find_fit(self, request: PreflightRequest) -> MemoryFit | None: ...
    def sharing(self, job_id: str, reserved_bytes: int) -> AbstractContextManager[None]: ...
    def paused(self, job_id: str) -> AbstractContextManager[None]: ...


@contextmanager
def reserve_device(
    engine: SharedEngine, job_id: str, describe: Describe, *, policy: GpuPolicy, is_gpu: bool
) -> Iterator[bool]:
    """Make room for a job on the device while the context lasts; yields whether serving pauses meanwhile.

    Serving pauses, too, where it is unknown whether both fit.
    """
    if not must_leave(policy, is_gpu=is_gpu):
        yield False
        return
    fit = _find_fit(engine, describe) if policy is GpuPolicy.AUTO else None
    if fit is not None and fit.fits:
        log.info("Job %s: trains while serving goes on; it needs %.1f GB", job_id, fit.bytes / 1e9)
        with engine.sharing(job_id, fit.bytes):
            yield False
    else:
        with engine.paused(job_id):
            yield True


def must_leave(policy: GpuPolicy, *, is_gpu: bool) -> bool:
    """Whether the policy has serving leave memory, or the whole device, to a job."""
    return policy is GpuPolicy.PAUSE_SERVING or (policy is GpuPolicy.AUTO and is_gpu)


def _find_fit(engine: SharedEngine, describe: Describe) -> MemoryFit | None:
    try:
        return engine.find_fit(describe())
    except TunesmithError as error:
        # The job will fail with this error.
        log.info("The size of the job is unknown: %s", error)
        return None


def find_request(session: Session, job_id: str) -> PreflightRequest:
    """The request for the size of a job. Raises JobNotFound, DatasetNotFound, AdapterNotFound."""
    job = job_records.get(session, job_id)
    spec = JobSpec.model_validate(job.spec)
    if spec.continue_from:
        spec = continuation.resolve(session, spec)
    validation = spec.validation_dataset
    return PreflightRequest(
        spec=spec,
        dataset=_find_dataset(session, spec.dataset),
        validation_dataset=_find_dataset(session, validation) if validation else None,
        submitted_at=job.created_at.astimezone(UTC),
    )


def _find_dataset(session: Session, dataset_id: str) -> DatasetRef:
    dataset = dataset_records.get_ready(session, dataset_id)
    return DatasetRef(artifact=dataset.artifact, rows=dataset.rows, size_bytes=dataset.size_bytes)
