"""Imports of adapters trained elsewhere, until they are verified: submit, find, finish, fail, delete.

An import has the id that its adapter will have; once it is verified, the adapter's row replaces its row.
Several processes may verify the same import: the first one that finishes it wins. Nothing here commits.
"""

from datetime import datetime

from sqlalchemy import delete as sql_delete, func, select
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.aliases import records as alias_records
from app.core.engine.messages import AdapterRef, BaseModelRef
from app.core.errors import QueueFull
from app.core.errors.adapters import AdapterNameTaken, AdapterNotFound
from app.core.specs.job import LoraSpec, QuantizationSpec
from app.core.specs.states import AdapterState
from app.core.storage import clock, tables
from app.core.storage.ids import new_id
from app.core.storage.paging import newest_first


def name_artifact() -> tuple[str, str]:
    """Returns a fresh id for an adapter, and the key of its folder in the artifact store."""
    adapter_id = new_id("ad")
    return adapter_id, f"adapters/{adapter_id}"


def submit(
    session: Session,
    adapter_id: str,
    *,
    name: str,
    base_model: str,
    quantization: QuantizationSpec,
    lora: LoraSpec | None,
    chat_template: str | None,
    artifact: str,
    size_bytes: int,
    max_waiting: int,
    now: datetime | None = None,
) -> tables.AdapterImportRow:
    """Add the import of an adapter whose files are in the store, to be verified.

    Raises AdapterNameTaken and QueueFull.
    """
    is_waiting = tables.AdapterImportRow.state == AdapterState.IMPORTING
    waiting = session.scalar(select(func.count()).select_from(tables.AdapterImportRow).where(is_waiting)) or 0
    if waiting >= max_waiting:
        raise QueueFull(f"{waiting} adapters are being imported already.", hint="Try again later.")
    _refuse_taken(session, name)
    row = tables.AdapterImportRow(
        id=adapter_id,
        name=name,
        state=AdapterState.IMPORTING,
        base_model=base_model,
        quantization=quantization.model_dump(mode="json"),
        origin={"lora": lora.model_dump(mode="json") if lora else None, "chat_template": chat_template},
        artifact=artifact,
        size_bytes=size_bytes,
        created_at=now or clock.now(session),
    )
    session.add(row)
    session.flush()
    return row


def find_page(
    session: Session, *, state: AdapterState, after: str | None, limit: int
) -> tuple[list[tables.AdapterImportRow], str | None]:
    """Returns a page of imports in one state, newest first, and the cursor of the next page."""
    query = select(tables.AdapterImportRow).where(tables.AdapterImportRow.state == state)
    return newest_first(session, query, tables.AdapterImportRow, after=after, limit=limit)


def find_unverified(session: Session) -> list[str]:
    """Returns the ids of imports that are to be verified, oldest first."""
    query = select(tables.AdapterImportRow.id).where(tables.AdapterImportRow.state == AdapterState.IMPORTING)
    return list(
        session.scalars(query.order_by(tables.AdapterImportRow.created_at, tables.AdapterImportRow.id))
    )


def references(row: tables.AdapterImportRow) -> tuple[BaseModelRef, AdapterRef]:
    """Returns what a request to the engine names: the base model, and the import as an adapter."""
    quantization = QuantizationSpec.model_validate(row.quantization)
    base_model = BaseModelRef(name=row.base_model, quantization=quantization)
    return base_model, AdapterRef(id=row.id, artifact=row.artifact)


def finish(session: Session, adapter_id: str, *, general_path: list[str]) -> tables.AdapterRow | None:
    """Make an adapter of a verified import. `general_path`: why the engine serves it on that path.

    Returns None where it was deleted or finished meanwhile."""
    row = _lock_unverified(session, adapter_id)
    if row is None:
        return None
    session.delete(row)
    session.flush()
    return adapter_records.add_imported(session, row, general_path=general_path)


def fail(session: Session, adapter_id: str, error: dict[str, str | None]) -> str | None:
    """Record why an import failed. Returns the key of its files, which can be deleted.

    Returns None where it was deleted or finished meanwhile.
    """
    row = _lock_unverified(session, adapter_id)
    if row is None:
        return None
    row.state, row.error = AdapterState.FAILED, error
    session.flush()
    return row.artifact


def wait(session: Session, adapter_id: str, reason: dict[str, str | None], *, is_lost: bool) -> int:
    """Record what an import waits for. Returns the count of lost attempts, this one included if `is_lost`."""
    row = _lock_unverified(session, adapter_id)
    if row is None:
        return 0
    row.error = reason
    row.lost_attempts += is_lost
    session.flush()
    return row.lost_attempts


def delete(session: Session, id_or_name: str) -> str:
    """Remove an import that is under way or failed. Returns the key of its files. Raises AdapterNotFound."""
    row = adapter_records.find_import(session, id_or_name)
    if row is None:
        raise AdapterNotFound(f"There is no adapter {id_or_name!r}.", param="adapter")
    session.execute(sql_delete(tables.AdapterImportRow).where(tables.AdapterImportRow.id == row.id))
    return row.artifact


def _lock_unverified(session: Session, adapter_id: str) -> tables.AdapterImportRow | None:
    return session.scalar(
        select(tables.AdapterImportRow)
        .where(
            tables.AdapterImportRow.id == adapter_id, tables.AdapterImportRow.state == AdapterState.IMPORTING
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _refuse_taken(session: Session, name: str) -> None:
    finished = select(tables.AdapterRow.id).where(tables.AdapterRow.name == name)
    importing = select(tables.AdapterImportRow.id).where(
        tables.AdapterImportRow.name == name, tables.AdapterImportRow.state == AdapterState.IMPORTING
    )
    if session.scalar(finished.union_all(importing).limit(1)):
        raise AdapterNameTaken(
            f"There is an adapter {name!r} already.", param="name", hint="Send another `name`."
        )
    if alias_records.find(session, name) is not None:
        raise AdapterNameTaken(
            f"There is an alias {name!r}.",
            param="name",
            hint=f"Send another `name`; PUT /aliases/{name} points the alias to the adapter.",
        )
