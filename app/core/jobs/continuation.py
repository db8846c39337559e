"""Fills in and checks the spec of a job that starts from an adapter, by the database. Reads no weights."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.adapters.names import get_adapter
from app.core.errors.adapters import AdapterIncompatible, AdapterNotFound
from app.core.specs.job import JobSpec, LoraSpec, QuantizationSpec
from app.core.storage import tables


def resolve(session: Session, spec: JobSpec) -> JobSpec:
    """Returns the spec with the adapter's id, and with the adapter's settings where the spec has none.

    The adapter can't be deleted until the transaction ends. Raises AdapterNotFound, AdapterNotReady and
    AdapterIncompatible.
    """
    assert spec.continue_from is not None
    adapter = _hold(session, spec.continue_from)
    if adapter.base_model != spec.base_model:
        raise AdapterIncompatible(
            f"Adapter {adapter.name!r} was made for {adapter.base_model}, not for {spec.base_model}.",
            param="continue_from",
            hint=f"Set base_model to {adapter.base_model!r}, or name another adapter.",
        )
    filled: dict[str, object] = {"continue_from": adapter.id}
    if "quantization" not in spec.model_fields_set:
        filled["quantization"] = QuantizationSpec.model_validate(adapter.quantization)
    lora, chat_template = _find_origin(session, adapter)
    if lora and "lora" in spec.model_fields_set:
        _refuse_other_shape(adapter.name, lora, spec.lora)
    elif lora:
        filled["lora"] = lora
    if chat_template and "chat_template" not in spec.model_fields_set:
        filled["chat_template"] = chat_template
    return spec.model_copy(update=filled)


def _hold(session: Session, name: str) -> tables.AdapterRow:
    try:
        adapter = get_adapter(session, name)
    except AdapterNotFound as error:
        raise AdapterNotFound(error.message, param="continue_from", hint=error.hint) from error
    # PostgreSQL needs the row's lock for it; on SQLite a write transaction is alone anyway.
    session.execute(
        select(tables.AdapterRow.id).where(tables.AdapterRow.id == adapter.id).with_for_update(read=True)
    )
    return adapter


def _find_origin(session: Session, adapter: tables.AdapterRow) -> tuple[LoraSpec | None, str | None]:
    """Returns the adapter's LoRA settings and chat template, by its job or its import, where known."""
    job = session.get(tables.JobRow, adapter.job_id) if adapter.job_id else None
    if job:
        made = JobSpec.model_validate(job.spec)
        return made.lora, made.chat_template
    origin = adapter.origin or {}
    return LoraSpec.model_validate(origin["lora"]) if origin.get("lora") else None, origin.get(
        "chat_template"
    )


def _refuse_other_shape(name: str, made: LoraSpec, requested: LoraSpec) -> None:
    """Raise AdapterIncompatible where a setting other than the dropout differs from the adapter's."""
    for setting in sorted(LoraSpec.model_fields.keys() - {"dropout"}):
        was, now = getattr(made, setting), getattr(requested, setting)
        if was != now and not (setting == "target_modules" and _same_names(was, now)):
            raise AdapterIncompatible(
                f"Adapter {name!r} was made with lora.{setting} {was!r}, not {now!r}.",
                param=f"lora.{setting}",
                hint="Leave out `lora`: the job then takes the adapter's own settings.",
            )


def _same_names(one: object, other: object) -> bool:
    return isinstance(one, list) and isinstance(other, list) and set(one) == set(other)
