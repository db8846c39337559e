"""Aliases and their versions: find, point, roll back, delete. Nothing here commits.

Every change makes a version, and versions stay when the alias is deleted: a number never comes twice, so
that who expects version 3 gets what it saw. Nothing is cached: every process on the database sees a change at
once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import delete as sql_delete, func, or_, select
from sqlalchemy.orm import Session

from app.core.aliases.shares import AliasTarget
from app.core.errors.aliases import (
    AliasAmbiguous,
    AliasChanged,
    AliasNameTaken,
    AliasNotFound,
    AliasTargetGone,
)
from app.core.specs.states import AdapterState
from app.core.storage import clock, tables
from app.core.storage.similar import suggest

MAX_TARGETS = 16
# The oldest versions beyond these are deleted.
MAX_VERSIONS = 1000


class AliasAction(StrEnum):
    """What made a version of an alias."""

    PUT = "put"
    ROLLBACK = "rollback"
    DELETE = "delete"


@dataclass(frozen=True)
class Expectation:
    """What a change expects to find, as HTTP's If-Match and If-None-Match say it; by default anything.

    `versions`: the alias exists in one of these. `exists`: whether there is such an alias.
    """

    versions: Collection[int] | None = None
    exists: bool | None = None

    def check(self, name: str, version: int | None) -> None:
        """Raise AliasChanged where the alias is of another version; None: there is none."""
        is_met = self.exists in (None, version is not None)
        if self.versions is not None:
            is_met = is_met and version in self.versions
        if not is_met:
            found = "does not exist" if version is None else f"is of version {version} now"
            raise AliasChanged(
                f"The alias {name!r} {found}.",
                hint=f"GET /aliases/{name} shows it; decide again, and send that.",
            )


ANYTHING = Expectation()


def find(session: Session, name: str) -> tables.AliasRow | None:
    """Returns an alias, or None."""
    return session.get(tables.AliasRow, name, populate_existing=True)


def find_named(session: Session, names: Collection[str]) -> dict[str, tables.AliasRow]:
    """Returns the aliases of these names, by name."""
    if not names:
        return {}
    rows = session.scalars(select(tables.AliasRow).where(tables.AliasRow.name.in_(names)))
    return {row.name: row for row in rows}


def get(session: Session, name: str) -> tables.AliasRow:
    """Returns an alias. Raises AliasNotFound."""
    row = find(session, name)
    if row is None:
        last = _last_version(session, name)
        hint = suggest(name, session.scalars(select(tables.AliasRow.name)))
        if last is not None:
            hint = f"It was deleted: POST /aliases/{name}/rollback brings it back. "
        raise AliasNotFound(f"There is no alias {name!r}.", hint=f"{hint}GET /aliases lists them.")
    return row


def find_all(session: Session) -> list[tables.AliasRow]:
    """Returns all aliases, by name."""
    return list(session.scalars(select(tables.AliasRow).order_by(tables.AliasRow.name)))


def find_page(session: Session, *, after: str | None, limit: int) -> tuple[list[tables.AliasRow], str | None]:
    """Returns a page of aliases, by name, and the name to go on after, or None at the end."""
    query = select(tables.AliasRow).order_by(tables.AliasRow.name)
    if after is not None:
        query = query.where(tables.AliasRow.name > after)
    rows = list(session.scalars(query.limit(limit + 1)))
    return rows[:limit], rows[limit - 1].name if len(rows) > limit else None


def find_versions(
    session: Session, name: str, *, before: int | None, limit: int
) -> tuple[list[tables.AliasVersionRow], int | None]:
    """Returns versions of an alias, the newest first, and the number to go on before, or None at the end.

    Those of a deleted alias are there, too. Raises AliasNotFound.
    """
    table = tables.AliasVersionRow
    query = select(table).where(table.name == name).order_by(table.version.desc())
    if before is not None:
        query = query.where(table.version < before)
    rows = list(session.scalars(query.limit(limit + 1)))
    if not rows and before is None:
        get(session, name)
    return rows[:limit], rows[limit - 1].version if len(rows) > limit else None


def targets_of(row: tables.AliasRow | tables.AliasVersionRow) -> list[AliasTarget]:
    """Returns what an alias points to."""
    return [AliasTarget.model_validate(target) for target in row.targets]


def get_only_target(row: tables.AliasRow) -> AliasTarget:
    """Returns what an alias points to where one model is needed. Raises AliasAmbiguous."""
    targets = targets_of(row)
    if len(targets) > 1:
        names = " or ".join(repr(target.name) for target in targets)
        raise AliasAmbiguous(
            f"The alias {row.name!r} is shared by {len(targets)} models, and one is needed here.",
            hint=f"Name {names}.",
        )
    return targets[0]


def find_pointing(session: Session, adapter_id: str) -> list[str]:
    """Returns the names of the aliases that point to an adapter."""
    return [
        row.name for row in find_all(session) if any(one.adapter == adapter_id for one in targets_of(row))
    ]


def put(
    session: Session,
    name: str,
    targets: Sequence[AliasTarget],
    *,
    base_models: Collection[str],
    expected: Expectation = ANYTHING,
    changed_by: str | None = None,
    now: datetime | None = None,
) -> tables.AliasRow:
    """Point an alias to these targets; add it where there is none. `base_models` are in models folders.

    An alias that points there already stays as it is. Raises AliasChanged and AliasNameTaken.
    """
    row = _lock(session, name, expected)
    if row is None:
        _refuse_taken(session, name, base_models)
    elif set(targets_of(row)) == set(targets):
        return row
    return _change(session, name, row, targets, AliasAction.PUT, changed_by=changed_by, now=now)


def roll_back(
    session: Session,
    name: str,
    version: int | None,
    *,
    base_models: Collection[str],
    expected: Expectation = ANYTHING,
    changed_by: str | None = None,
    now: datetime | None = None,
) -> tables.AliasRow:
    """Point an alias to where it pointed in a version; None: in the one before the present one.

    A second rollback undoes the first one, as in Kubernetes. An alias that was deleted comes back. Raises
    AliasNotFound, AliasChanged, AliasTargetGone, and AliasNameTaken where another has its name by now.
    """
    row = _lock(session, name, expected)
    if row is None:
        _refuse_taken(session, name, base_models)
    earlier = _find_version(session, name, version, is_live=row is not None)
    targets = targets_of(earlier)
    _refuse_gone(session, name, earlier.version, targets)
    return _change(
        session,
        name,
        row,
        targets,
        AliasAction.ROLLBACK,
        restored=earlier.version,
        changed_by=changed_by,
        now=now,
    )


def delete(
    session: Session,
    name: str,
    *,
    expected: Expectation = ANYTHING,
    changed_by: str | None = None,
    now: datetime | None = None,
) -> None:
    """Remove an alias; its versions stay. Raises AliasNotFound and AliasChanged."""
    row = _lock(session, name, expected)
    if row is None:
        get(session, name)
    session.delete(row)
    _add_version(session, name, [], AliasAction.DELETE, changed_by=changed_by, now=now or clock.now(session))
    session.flush()


def _lock(session: Session, name: str, expected: Expectation) -> tables.AliasRow | None:
    """Returns the alias, which nobody else changes until the transaction ends. Raises AliasChanged."""
    row = session.get(tables.AliasRow, name, populate_existing=True, with_for_update=True)
    expected.check(name, row.version if row else None)
    return row


def _refuse_taken(session: Session, name: str, base_models: Collection[str]) -> None:
    """Raise AliasNameTaken where a request with this name means another model already."""
    adapter, brought = tables.AdapterRow, tables.AdapterImportRow
    is_adapter = select(adapter.id).where(or_(adapter.name == name, adapter.id == name))
    is_import = select(brought.id).where(
        or_(brought.name == name, brought.id == name), brought.state == AdapterState.IMPORTING
    )
    kind = "an adapter" if session.scalar(is_adapter.union_all(is_import).limit(1)) else None
    kind = "a base model" if name in base_models else kind
    if kind:
        raise AliasNameTaken(
            f"There is {kind} {name!r}.", param="name", hint="Choose a name that no model has."
        )


def _refuse_gone(session: Session, name: str, version: int, targets: Sequence[AliasTarget]) -> None:
    """Raise AliasTargetGone for a deleted adapter; the others can't be deleted until the transaction ends."""
    wanted = {target.adapter: target.name for target in targets if target.adapter}
    row = tables.AdapterRow
    found = set(session.scalars(select(row.id).where(row.id.in_(wanted)).with_for_update(read=True)))
    gone = [target_name for adapter_id, target_name in wanted.items() if adapter_id not in found]
    if gone:
        raise AliasTargetGone(
            f"Version {version} of the alias {name!r} points to {', '.join(gone)}, which was deleted.",
            hint=f"GET /aliases/{name}/versions lists the others.",
        )


def _find_version(
    session: Session, name: str, version: int | None, *, is_live: bool
) -> tables.AliasVersionRow:
    """Returns a version that points somewhere. Raises AliasNotFound."""
    table = tables.AliasVersionRow
    query = select(table).where(table.name == name, table.action != AliasAction.DELETE)
    if version is not None:
        query = query.where(table.version == version)
    # Of an alias that was deleted, the newest version is the one before the deletion.
    skipped = 1 if is_live and version is None else 0
    found = session.scalar(query.order_by(table.version.desc()).offset(skipped).limit(1))
    if found is None:
        if _last_version(session, name) is None:
            get(session, name)
        what = "no earlier version" if version is None else f"no version {version} that points anywhere"
        raise AliasNotFound(
            f"The alias {name!r} has {what}.", hint=f"GET /aliases/{name}/versions lists them."
        )
    return found


def _last_version(session: Session, name: str) -> int | None:
    table = tables.AliasVersionRow
    return session.scalar(select(func.max(table.version)).where(table.name == name))


def _change(
    session: Session,
    name: str,
    row: tables.AliasRow | None,
    targets: Sequence[AliasTarget],
    action: AliasAction,
    *,
    restored: int | None = None,
    changed_by: str | None,
    now: datetime | None,
) -> tables.AliasRow:
    now = now or clock.now(session)
    version = _add_version(session, name, targets, action, restored=restored, changed_by=changed_by, now=now)
    if row is None:
        row = tables.AliasRow(name=name, created_at=now)
        session.add(row)
    row.version, row.updated_at = version.version, now
    row.targets = version.targets
    session.flush()
    return row


def _add_version(
    session: Session,
    name: str,
    targets: Sequence[AliasTarget],
    action: AliasAction,
    *,
    restored: int | None = None,
    changed_by: str | None,
    now: datetime,
) -> tables.AliasVersionRow:
    table = tables.AliasVersionRow
    number = (_last_version(session, name) or 0) + 1
    version = table(
        name=name,
        version=number,
        action=action,
        targets=[target.model_dump(mode="json") for target in targets],
        restored=restored,
        changed_by=changed_by,
        created_at=now,
    )
    session.add(version)
    session.execute(sql_delete(table).where(table.name == name, table.version <= number - MAX_VERSIONS))
    return version
