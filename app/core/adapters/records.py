"""Adapters of finished jobs, of checkpoints, and imported ones: add, find by id or name, list, delete."""

from collections.abc import Collection

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.core.aliases import records as alias_records
from app.core.engine.messages import AdapterRef, BaseModelRef
from app.core.errors.adapters import AdapterInUse, AdapterNotFound, AdapterNotReady
from app.core.exports import records as export_records
from app.core.specs.job import JobSpec, QuantizationSpec
from app.core.specs.states import ENDED, UNFINISHED, AdapterState, JobState
from app.core.storage import clock, tables
from app.core.storage.ids import derive_id
from app.core.storage.paging import newest_first
from app.core.storage.similar import suggest

# The organization in names and objects of OpenAI's shape.
ORGANIZATION = "tunesmith"
_SUGGESTED_AMONG = 1000


def name_artifact(job_id: str, attempt: int) -> tuple[str, str]:
    """Returns the id of the adapter that an attempt makes, and the key of its folder in the artifact store.

    Both follow from the arguments: after a worker that died between the upload and its last transaction, the
    next one knows which files it left.
    """
    return _derive(f"{job_id}/{attempt}")


def name_checkpoint_artifact(job_id: str, step: int) -> tuple[str, str]:
    """Returns the id and the key of a checkpoint's adapter, which are the same in every attempt."""
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
    general_path: list[str] | None = None,
) -> tables.AdapterRow:
    """Add an adapter that a job made. `general_path`: why the engine serves it on that path, if it is known.

    It has the job's name, or the name that follows from the spec's `suffix`; a checkpoint's name has the step
    too. A name that is taken gets a number.
    """
    adapter = tables.AdapterRow(
        id=adapter_id,
        name=_free_name(session, _name(spec, job_id, step)),
        base_model=spec.base_model,
        quantization=spec.quantization.model_dump(mode="json"),
        job_id=job_id,
        step=step,
        general_path=general_path,
        size_bytes=size_bytes,
        artifact=artifact,
        created_at=clock.now(session),
    )
    session.add(adapter)
    session.flush()
    return adapter


def add_imported(
    session: Session, verified: tables.AdapterImportRow, *, general_path: list[str]
) -> tables.AdapterRow:
    """Add the adapter of a verified import. A name that was taken meanwhile gets a number."""
    adapter = tables.AdapterRow(
        id=verified.id,
        name=_free_name(session, verified.name),
        base_model=verified.base_model,
        quantization=verified.quantization,
        origin=verified.origin,
        general_path=general_path,
        size_bytes=verified.size_bytes,
        artifact=verified.artifact,
        created_at=clock.now(session),
    )
    session.add(adapter)
    session.flush()
    return adapter


def find_import(session: Session, id_or_name: str) -> tables.AdapterImportRow | None:
    """Returns the import, under way or failed, with this id or name; of several with the name, the newest."""
    wanted = or_(tables.AdapterImportRow.id == id_or_name, tables.AdapterImportRow.name == id_or_name)
    newest = tables.AdapterImportRow.created_at.desc()
    return session.scalar(select(tables.AdapterImportRow).where(wanted).order_by(newest).limit(1))


def find_named(session: Session, ids_or_names: Collection[str]) -> dict[str, tables.AdapterRow]:
    """Returns the adapters with these ids or names, by both."""
    if not ids_or_names:
        return {}
    wanted = or_(tables.AdapterRow.id.in_(ids_or_names), tables.AdapterRow.name.in_(ids_or_names))
    rows = session.scalars(select(tables.AdapterRow).where(wanted)).all()
    return {row.name: row for row in rows} | {row.id: row for row in rows}


def get(session: Session, id_or_name: str) -> tables.AdapterRow:
    """Returns an adapter. Raises AdapterNotFound, and AdapterNotReady for an import under way or failed."""
    wanted = or_(tables.AdapterRow.id == id_or_name, tables.AdapterRow.name == id_or_name)
    adapter = session.scalar(select(tables.AdapterRow).where(wanted))
    if adapter is None:
        pending = find_import(session, id_or_name)
        if pending is not None:
            raise AdapterNotReady(
                f"The import of adapter {pending.name!r} is not done: it is {pending.state}.",
                param="adapter",
                hint=f"GET /adapters/{pending.id} says more.",
            )
        reason, hint = explain_missing(session, id_or_name)
        raise AdapterNotFound(
            f"There is no adapter {id_or_name!r}{reason}.",
            param="adapter",
            hint=f"{hint}GET /adapters lists them by id and name.",
        )
    return adapter


def explain_missing(session: Session, id_or_name: str) -> tuple[str, str]:
    """Returns why no adapter has this name, as the rest of a sentence, and a hint; either may be empty.

    It may be an alias; the job of that name may not have made it yet; or another name was meant.
    """
    alias = alias_records.find(session, id_or_name)
    if alias is not None:
        names = " and ".join(target.name for target in alias_records.targets_of(alias))
        return f": it is an alias of {names}", f"GET /aliases/{alias.name} says more. "
    making = select(tables.JobRow).where(
        or_(tables.JobRow.id == id_or_name, tables.JobRow.name == id_or_name)
    )
    job = session.scalar(making.order_by(tables.JobRow.created_at.desc()).limit(1))
    if job is not None:
        return _describe(job), f"GET /jobs/{job.id} says more. "
    newest = select(tables.AdapterRow.name).order_by(tables.AdapterRow.created_at.desc())
    return "", suggest(id_or_name, session.scalars(newest.limit(_SUGGESTED_AMONG)))


def _describe(job: tables.JobRow) -> str:
    """Why the job has no adapter, as the rest of a sentence."""
    if job.state == JobState.SUCCEEDED:
        return f": the one that job {job.id} made was deleted"
    if job.state in ENDED:
        return f": its job {job.id} is {job.state}"
    if job.state == JobState.RUNNING and job.total_steps:
        return f" yet: its job {job.id} is at step {job.step} of {job.total_steps}"
    return f" yet: its job {job.id} is {job.state}"


def find_page(
    session: Session, *, after: str | None, limit: int
) -> tuple[list[tables.AdapterRow], str | None]:
    """Returns a page of adapters, newest first, and the cursor of the next page."""
    return newest_first(session, select(tables.AdapterRow), tables.AdapterRow, after=after, limit=limit)


def find_checkpoints(session: Session, job_id: str) -> list[tables.AdapterRow]:
    """Returns the adapters of a job's checkpoints, the newest step first."""
    query = select(tables.AdapterRow).where(
        tables.AdapterRow.job_id == job_id, tables.AdapterRow.step.is_not(None)
    )
    return list(session.scalars(query.order_by(tables.AdapterRow.step.desc())))


def delete(session: Session, id_or_name: str) -> str:
    """Remove the row. Returns the key of its files, to be deleted once the transaction is committed.

    Raises AdapterNotFound, and AdapterInUse while an alias points to it, or a job, an export or an evaluation
    that has not ended needs it.
    """
    adapter = get(session, id_or_name)
    # Who lets an alias point to it has locked the row, too, and has committed once this returns.
    session.execute(select(tables.AdapterRow.id).where(tables.AdapterRow.id == adapter.id).with_for_update())
    aliases = alias_records.find_pointing(session, adapter.id)
    if aliases:
        raise AdapterInUse(
            f"The alias {aliases[0]!r} points to adapter {adapter.name!r}.",
            hint=f"Point it elsewhere first: PUT /aliases/{aliases[0]}.",
        )
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
    evaluation_id = _find_evaluation(session, adapter.id)
    if evaluation_id:
        raise AdapterInUse(
            f"Evaluation {evaluation_id} of adapter {adapter.name!r} has not ended.",
            hint=f"Cancel it first: POST /evaluations/{evaluation_id}/cancel.",
        )
    session.delete(adapter)
    return adapter.artifact


def _find_evaluation(session: Session, adapter_id: str) -> str | None:
    """Returns the id of an evaluation of this adapter that has not ended, or None."""
    row = tables.EvaluationRow
    waiting = select(row.id, row.spec).where(row.state.in_(UNFINISHED))
    for evaluation_id, spec in session.execute(waiting):
        if any(model.get("adapter") == adapter_id for model in spec["models"]):
            return str(evaluation_id)
    return None


def find_missing(session: Session, adapter_ids: Collection[str]) -> list[str]:
    """Returns those of the ids that no adapter has, nor an import that has not failed."""
    if not adapter_ids:
        return []
    adapters, imports = tables.AdapterRow, tables.AdapterImportRow
    is_importing = imports.state == AdapterState.IMPORTING
    found = {
        *session.scalars(select(adapters.id).where(adapters.id.in_(adapter_ids))),
        *session.scalars(select(imports.id).where(imports.id.in_(adapter_ids), is_importing)),
    }
    return sorted(set(adapter_ids) - found)


def references(adapter: tables.AdapterRow) -> tuple[BaseModelRef, AdapterRef]:
    """Returns what a request to the engine names: the base model and the adapter."""
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
    taken.update(
        session.scalars(
            select(tables.AliasRow.name).where(tables.AliasRow.name.startswith(name, autoescape=True))
        )
    )
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 2))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)
