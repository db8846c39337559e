"""What a job reads: kept from being deleted while the job has not ended."""

from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.jobs import continuation
from app.core.specs.job import JobSpec


def hold(session: Session, spec: JobSpec) -> JobSpec:
    """Keep what the job reads from being deleted; answers the spec with what is left to an adapter filled in.

    Raises DatasetNotFound, DatasetNotReady, AdapterNotFound and AdapterIncompatible.
    """
    dataset_records.hold(session, spec.dataset)
    if spec.validation_dataset:
        dataset_records.hold(session, spec.validation_dataset, param="validation_dataset")
    return continuation.resolve(session, spec) if spec.continue_from else spec
