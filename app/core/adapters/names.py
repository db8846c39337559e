"""What a name stands for: a base model, an adapter, or what an alias points to. Knows no engine."""

import re
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.adapters import records
from app.core.aliases import records as alias_records
from app.core.aliases.shares import AliasTarget
from app.core.engine import workers
from app.core.errors.adapters import AdapterNotFound
from app.core.errors.aliases import AliasInvalid
from app.core.settings import Settings
from app.core.specs.patterns import MODEL_NAME
from app.core.storage import tables

_MODEL_NAME = re.compile(MODEL_NAME)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id: owner/name."""
    return "/" in name and _MODEL_NAME.fullmatch(name) is not None


def get_adapter(session: Session, name: str) -> tables.AdapterRow:
    """Returns the adapter of this id or name, or the one that an alias of this name points to.

    Raises AdapterNotFound, AdapterNotReady and AliasAmbiguous.
    """
    alias = alias_records.find(session, name)
    if alias is None:
        return records.get(session, name)
    target = alias_records.get_only_target(alias)
    if target.adapter is None:
        raise AdapterNotFound(
            f"The alias {name!r} points to the base model {target.name}, not to an adapter.", param="adapter"
        )
    return records.get(session, target.adapter)


def find_targets(session: Session, settings: Settings, shares: Mapping[str, float]) -> list[AliasTarget]:
    """Returns what an alias is to point to, by the names of models and the part of the requests of each.

    The adapters can't be deleted until the transaction ends. Raises AliasInvalid, AdapterNotFound,
    AdapterNotReady, UnknownModel and ModelNotAllowed.
    """
    local = workers.find_local_names(session, settings)
    targets = [_find_target(session, settings, name, share, local) for name, share in shares.items()]
    keys = [target.key for target in targets]
    for target in targets:
        if keys.count(target.key) > 1:
            raise AliasInvalid(f"{target.name!r} is named twice, by its id and by its name.", param="shares")
    held = [target.adapter for target in targets if target.adapter]
    # PostgreSQL needs the rows' locks for it; on SQLite a write transaction is alone anyway.
    row = tables.AdapterRow
    locked = select(row.id).where(row.id.in_(held)).order_by(row.id).with_for_update(read=True)
    if len(session.scalars(locked).all()) < len(held):
        raise AdapterNotFound("An adapter of these was deleted just now.", param="target")
    return targets


def _find_target(
    session: Session, settings: Settings, name: str, share: float, local: list[str]
) -> AliasTarget:
    if alias_records.find(session, name) is not None:
        raise AliasInvalid(
            f"{name!r} is an alias itself.",
            param="target",
            hint=f"Name what it points to: GET /aliases/{name} says it.",
        )
    if name not in local:
        try:
            row = records.get(session, name)
        except AdapterNotFound as error:
            if not is_hub_id(name):
                message = f"There is neither an adapter nor a base model {name!r}."
                raise AdapterNotFound(message, param="target", hint=error.hint) from None
        else:
            return AliasTarget(
                name=row.name, base_model=row.base_model, adapter=row.id, step=row.step, share=share
            )
    workers.check_base_model(session, settings, name)
    return AliasTarget(name=name, base_model=name, share=share)
