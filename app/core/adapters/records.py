"""Adapters, finished or kept at a checkpoint: add, find by id or name, list, delete."""

from datetime import UTC, datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.core.engine.messages import AdapterRef, BaseModelRef
from app.core.errors.adapters import AdapterInUse, AdapterNotFound, AdapterNotReady
from app.core.exports import records as export_records
from app.core.specs.job import JobSpec, QuantizationSpec
from app.core.specs.states import ENDED
from app.core.storage import tables
from app.core.storage.ids import derive_id
from app.core.storage.paging import newest_first

# Who owns what is made here, where OpenAI names an organization.
ORGANIZATION = "tunesmith"


def name_artifact(job_id: str, attempt: int) -> tuple[str, str]:
    """The id of the adapter that an attempt makes, and the key of its folder in the artifact store.

    Whoever comes after a worker that died between the upload and its last transaction can tell it again.
    """
    return _derive(f"{job_id}/{attempt}")


def name_checkpoint_artifact(job_id: str, step: int) -> tuple[str, str]:
    """The same for the adapter of a checkpoint, which is the same one in every attempt."""
    return _derive(f"{job_id}/step/{step}")


def add(
    session: Session,
    adapter_id: str,
    *,
    spec: JobSpec,
    job_id: str,
    artifact: str,
    size_bytes: int,
    step: int | None = None,
) -> tables.AdapterRow:
    """Add an adapter that a job made. A name that is taken gets a number.

    It is called as the job is, or as the spec's `suffix` says; that of a checkpoint says the step.
    """
    adapter = tables.AdapterRow(
        id=adapter_id,
        name=_free_name(session, _name(spec, job_id, step)),
        base_model=spec.base_model,
        quantization=spec.quantization.model_dump(mode="json"),
        job_id=job_id,
        step=step,
        size_bytes=size_bytes,
        artifact=artifact,
        created_at=datetime.now(UTC),
    )
    session.add(adapter)
    session.flush()
    return adapter


def add_imported(session: Session, proved: tables.AdapterImportRow) -> tables.AdapterRow:
    """Add an adapter that was trained elsewhere. A name that was taken meanwhile gets a number."""
    adapter = tables.AdapterRow(
        id=proved.id,
        name=_free_name(session, proved.name),
        base_model=proved.base_model,
        quantization=proved.quantization,
        origin=proved.origin,
        size_bytes=proved.size_bytes,
        artifact=proved.artifact,
        created_at=datetime.now(UTC),
    )
    session.add(adapter)
    session.flush()
    return adapter


def find_import(session: Session, id_or_name: str) -> tables.AdapterImportRow | None:
    """What is being imported, or failed to be, under this id or name; of one name, the newest."""
    wanted = or_(tables.AdapterImportRow.id == id_or_name, tables.AdapterImportRow.name == id_or_name)
    newest = tables.AdapterImportRow.created_at.desc()
    return session.scalar(select(tables.AdapterImportRow).where(wanted).order_by(newest).limit(1))


def get(session: Session, id_or_name: str) -> tables.AdapterRow:
    """Raises AdapterNotFound, and AdapterNotReady for one that is being imported or failed to be."""
    wanted = or_(tables.AdapterRow.id == id_or_name, tables.AdapterRow.name == id_or_name)
    adapter = session.scalar(select(tables.AdapterRow).where(wanted))
    if adapter is None:
        unproved = find_import(session, id_or_name)
        if unproved is not None:
            raise AdapterNotReady(
                f"The import of adapter {unproved.name!r} is not done: it is {unproved.state}.",
                param="adapter",
                hint=f"GET /adapters/{unproved.id} says more.",
            )
        raise AdapterNotFound(
            f"There is no adapter {id_or_name!r}.",
            param="adapter",
            hint="GET /adapters lists them by id and name.",
        )
    return adapter


def find_page(
    session: Session, *, after: str | None, limit: int
) -> tuple[list[tables.AdapterRow], str | None]:
    """A page of adapters, newest first, and the cursor of the next page."""
    return newest_first(session, select(tables.AdapterRow), tables.AdapterRow, after=after, limit=limit)


def find_checkpoints(session: Session, job_id: str) -> list[tables.AdapterRow]:
    """What a job kept on its way, the newest step first."""
    query = select(tables.AdapterRow).where(
        tables.AdapterRow.job_id == job_id, tables.AdapterRow.step.is_not(None)
    )
    return list(session.scalars(query.order_by(tables.AdapterRow.step.desc())))


def delete(session: Session, id_or_name: str) -> str:
    """Remove the row and answer the artifact's key; the files go once the transaction is committed.

    Raises AdapterNotFound, and AdapterInUse while a job starts from it or an export is made of it.
    """
    adapter = get(session, id_or_name)
    waiting = select(tables.JobRow.id).where(
        tables.JobRow.spec["continue_from"].as_string() == adapter.id,
        tables.JobRow.state.not_in(ENDED),
    )
    job_id = session.scalar(waiting.limit(1))
    if job_id:
        raise AdapterInUse(
            f"Job {job_id} continues from adapter {adapter.name!r}.",
            hint=f"Cancel it first: POST /jobs/{job_id}/cancel.",
        )
    export_id = export_records.find_waiting(session, adapter.id)
    if export_id:
        raise AdapterInUse(
            f"Export {export_id} of adapter {adapter.name!r} has not ended.",
            hint=f"Cancel it first: POST /exports/{export_id}/cancel.",
        )
    session.delete(adapter)
    return adapter.artifact


def references(adapter: tables.AdapterRow) -> tuple[BaseModelRef, AdapterRef]:
    """How the engine is told of an adapter and of the base model it was trained against."""
    quantization = QuantizationSpec.model_validate(adapter.quantization)
    base_model = BaseModelRef(name=adapter.base_model, quantization=quantization)
    return base_model, AdapterRef(id=adapter.id, artifact=adapter.artifact)


def _derive(source: str) -> tuple[str, str]:
    adapter_id = derive_id("ad", source)
    return adapter_id, f"adapters/{adapter_id}"


def _name(spec: JobSpec, job_id: str, step: int | None) -> str:
    name = spec.name or job_id
    if spec.suffix is not None:
        name = f"ft:{spec.base_model}:{ORGANIZATION}:{spec.suffix}:{job_id.rpartition('_')[2]}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def _free_name(session: Session, name: str) -> str:
    taken = set(
        session.scalars(
            select(tables.AdapterRow.name).where(tables.AdapterRow.name.startswith(name, autoescape=True))
        )
    )
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 2))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)
