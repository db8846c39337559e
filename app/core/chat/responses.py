"""Stored responses of /v1/responses, which a later request may continue. Nothing here commits.

A response has only its own items; a conversation is put together from the responses that continue each other.
A response is deleted once it has expired and none continues it any more. One that is generated in the
background has a lease of the API process that generates it.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, delete, exists, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.core.errors import InvalidRequest
from app.core.errors.engine import PromptTooLong
from app.core.errors.responses import PreviousResponseNotFound, ResponseNotFound
from app.core.specs.states import UNFINISHED_RESPONSE, ResponseStatus
from app.core.storage import clock, tables

PREFIX = "resp"
_ID = re.compile(rf"{PREFIX}_[0-9a-z]{{16}}")
_ITEM_ID = re.compile(r"[a-z]{2,3}_([0-9a-z]{16})_[0-9]{1,5}")
# Responses that no other one continues are deleted first, so that a long conversation takes many rounds.
_MAX_ROUNDS = 1000
_PREVIOUS = "previous_response_id"

Item = dict[str, Any]


@dataclass(frozen=True)
class StoredConversation:
    """The items of a response and of all that it continues, the oldest first, and the size of their JSON.

    `served_by` is the adapter's id, or the base model, of the response.
    """

    items: list[Item]
    size_bytes: int
    served_by: str | None = None


def item_id(prefix: str, response_id: str, number: int) -> str:
    """Returns the id of an item, by which it is found: that of its response, and its number there."""
    return f"{prefix}_{response_id.removeprefix(f'{PREFIX}_')}_{number}"


def get(session: Session, response_id: str, *, now: datetime | None = None) -> tables.ResponseRow:
    """Returns a response that has not expired. Raises ResponseNotFound."""
    row = session.get(tables.ResponseRow, response_id) if _ID.fullmatch(response_id) else None
    if row is None or row.expires_at <= (now or clock.now(session)):
        raise ResponseNotFound(
            f"There is no response {response_id!r}.",
            hint="It may have been deleted, have expired, or been made with `store: false`.",
        )
    return row


def find_conversation(session: Session, response_id: str, *, max_bytes: int) -> StoredConversation:
    """Returns what a request continues that names this response.

    Raises PreviousResponseNotFound where it or one before it is gone, InvalidRequest where it has not ended,
    and PromptTooLong where the items have more than `max_bytes`.
    """
    try:
        last = get(session, response_id)
    except ResponseNotFound as error:
        raise PreviousResponseNotFound(error.message, param=_PREVIOUS, hint=error.hint) from None
    if last.status in UNFINISHED_RESPONSE:
        raise InvalidRequest(
            f"The response {response_id!r} is {last.status}.",
            param=_PREVIOUS,
            hint="GET /v1/responses/{id} shows when it has ended.",
        )
    if last.conversation_bytes > max_bytes:
        raise PromptTooLong(
            f"The conversation up to {response_id!r} has {last.conversation_bytes} bytes, more than the "
            f"{max_bytes} that one may have.",
            param=_PREVIOUS,
            hint="Begin a new conversation, with a summary of this one.",
        )
    return StoredConversation(read_items(session, last), last.conversation_bytes, last.served_by)


def read_items(session: Session, last: tables.ResponseRow) -> list[Item]:
    """Returns the items of a response and of all that it continues, the oldest first.

    Raises PreviousResponseNotFound where one of them was deleted.
    """
    table = tables.ResponseRow
    chain = select(table.id, table.previous_id, literal(0).label("steps")).where(table.id == last.id)
    earlier = chain.cte("earlier", recursive=True)
    following = select(table.id, table.previous_id, earlier.c.steps + 1)
    earlier = earlier.union_all(following.join(earlier, table.id == earlier.c.previous_id))
    query = select(table.previous_id, table.items).join(earlier, table.id == earlier.c.id)
    found = session.execute(query.order_by(earlier.c.steps.desc())).all()
    missing_id = found[0].previous_id
    if missing_id is not None:
        raise PreviousResponseNotFound(
            f"The response {missing_id!r}, which the conversation up to {last.id!r} began with or went "
            "through, was deleted.",
            param=_PREVIOUS,
            hint="Send the conversation itself as `input`.",
        )
    return [item for row in found for item in row.items]


def find_item(session: Session, sought_id: str) -> Item | None:
    """Returns a stored item by its id, or None."""
    match = _ITEM_ID.fullmatch(sought_id)
    if match is None:
        return None
    try:
        items = get(session, f"{PREFIX}_{match[1]}").items
    except ResponseNotFound:
        return None
    return next((item for item in items if item["id"] == sought_id), None)


def delete_one(session: Session, response_id: str) -> None:
    """Delete a response, also one that another continues. Raises ResponseNotFound."""
    session.delete(get(session, response_id))


def renew(session: Session, response_id: str, *, alive_until: datetime) -> bool:
    """Extend the lease of a response that is being generated, which is in progress from now on.

    Returns False where it was cancelled or deleted.
    """
    changes = {"alive_until": alive_until, "status": ResponseStatus.IN_PROGRESS}
    return _change_unfinished(session, response_id, changes)


def end(
    session: Session,
    response_id: str,
    status: ResponseStatus,
    *,
    content: Item,
    items: list[Item],
    size_bytes: int,
) -> bool:
    """Record how a response in the background has ended. Returns False where it had ended, or was deleted."""
    changes = {
        "status": status,
        "content": content,
        "items": items,
        "conversation_bytes": size_bytes,
        "alive_until": None,
    }
    return _change_unfinished(session, response_id, changes)


def cancel(session: Session, response_id: str) -> bool:
    """End a response in the background without its output. Returns False where it had ended."""
    changes = {"status": ResponseStatus.CANCELLED, "alive_until": None}
    return _change_unfinished(session, response_id, changes)


def fail_abandoned(session: Session, error: Item, *, now: datetime | None = None) -> list[str]:
    """Fail, with this error, the responses whose API process is gone. Returns their ids."""
    is_abandoned = tables.ResponseRow.alive_until < (now or clock.now(session))
    rows = session.scalars(select(tables.ResponseRow).where(is_abandoned)).all()
    for row in rows:
        row.status, row.alive_until = ResponseStatus.FAILED, None
        row.content = {**row.content, "error": error}
    return [row.id for row in rows]


def delete_expired(session: Session, *, now: datetime | None = None) -> None:
    """Delete the expired responses that none continues."""
    later = aliased(tables.ResponseRow)
    is_continued = exists().where(later.previous_id == tables.ResponseRow.id)
    is_expired = tables.ResponseRow.expires_at <= (now or clock.now(session))
    for _ in range(_MAX_ROUNDS):
        if not _count(session, delete(tables.ResponseRow).where(is_expired, ~is_continued)):
            break


def _change_unfinished(session: Session, response_id: str, changes: dict[str, Any]) -> bool:
    is_unfinished = tables.ResponseRow.status.in_(UNFINISHED_RESPONSE)
    statement = update(tables.ResponseRow).where(tables.ResponseRow.id == response_id, is_unfinished)
    return _count(session, statement.values(changes)) > 0


def _count(session: Session, statement: Any) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount
