"""The inputs of a job, its datasets and adapter, which can't be deleted while the job has not ended."""

from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.datasets.rows import DatasetFormat
from app.core.errors.datasets import DatasetUnfit
from app.core.jobs import continuation
from app.core.specs.job import JobSpec
from app.core.specs.methods import Method
from app.core.storage import tables

_COMPARISONS, _LABELLED = DatasetFormat.COMPARISONS, DatasetFormat.LABELLED_ANSWERS
# The formats of preferences that each method learns; sft learns all others.
_LEARNED: dict[Method, tuple[DatasetFormat, ...]] = {
    "dpo": (_COMPARISONS,),
    "orpo": (_COMPARISONS,),
    "kto": (_LABELLED, _COMPARISONS),
}
_KINDS = {_COMPARISONS: "comparisons of two answers", _LABELLED: "answers with labels"}
_NEEDED = {
    "sft": "answers to imitate: `messages`, `prompt` and `completion`, or `text`",
    "dpo": "comparisons: `prompt`, `chosen` and `rejected`",
    "orpo": "comparisons: `prompt`, `chosen` and `rejected`",
    "kto": "`prompt`, `completion` and `label`, or comparisons",
}


def hold(session: Session, spec: JobSpec) -> JobSpec:
    """Keep the job's inputs from being deleted until the transaction ends. Returns the spec, completed.

    What the spec leaves to the adapter that it continues from is filled in. Raises DatasetNotFound,
    DatasetNotReady, DatasetUnfit, AdapterNotFound, AdapterNotReady and AdapterIncompatible.
    """
    for param, dataset_id in (
        ("dataset", spec.dataset),
        ("validation_dataset", spec.validation_dataset),
    ):
        if dataset_id:
            dataset_records.hold(session, dataset_id, param=param)
            check_method(dataset_records.get(session, dataset_id), spec.method, param=param)
    return continuation.resolve(session, spec) if spec.continue_from else spec


def check_method(dataset: tables.DatasetRow, method: Method, *, param: str = "dataset") -> None:
    """Raise DatasetUnfit where the rows of a dataset are not of the kind that a method learns."""
    found = DatasetFormat(dataset.format) if dataset.format else None
    kind = _KINDS.get(found) if found else None
    if kind is None and method == "sft":
        return
    if found is not None and found in _LEARNED.get(method, ()):
        return
    methods = [name for name, formats in _LEARNED.items() if found in formats] or ["sft"]
    raise DatasetUnfit(
        f"The method {method} learns from {_NEEDED[method]}; dataset {dataset.id} has "
        f"{kind or 'answers to imitate'}.",
        param=param,
        hint=f"Set method to {' or '.join(filter(None, (', '.join(methods[:-1]), methods[-1])))}, or name "
        "another dataset.",
    )
