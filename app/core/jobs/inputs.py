"""The inputs of a job, its datasets and adapter, which can't be deleted while the job has not ended."""

from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.jobs import continuation
from app.core.specs.job import JobSpec


def hold(session: Session, spec: JobSpec) -> JobSpec:
    """Keep the job's inputs from being deleted until the transaction ends. Returns the spec, completed.

    What the spec leaves to the adapter that it continues from is filled in. Raises DatasetNotFound,
    DatasetNotReady, AdapterNotFound, AdapterNotReady and AdapterIncompatible.
    """
    dataset_records.hold(session, spec.dataset)
    if spec.validation_dataset:
        dataset_records.hold(session, spec.validation_dataset, param="validation_dataset")
    return continuation.resolve(session, spec) if spec.continue_from else spec
