"""The rows of stored responses: their conversations, their expiry, their leases."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.core.chat import responses
from app.core.errors import InvalidRequest
from app.core.errors.responses import PreviousResponseNotFound, ResponseNotFound
from app.core.specs.states import ResponseStatus
from app.core.storage import tables
from app.core.storage.database import Database

NOW = datetime(2026, 11, 29, tzinfo=UTC)
HOUR = timedelta(hours=1)


def make(database: Database, number: int, previous: int | None = None, **fields: Any) -> str:
    defaults: dict[str, Any] = {
        "id": name(number),
        "previous_id": None if previous is None else name(previous),
        "status": ResponseStatus.COMPLETED,
        "input_count": 1,
        "conversation_bytes": 10,
        "created_at": NOW,
        "expires_at": datetime.now(UTC) + HOUR,
        "content": {"error": None},
        "items": [{"id": f"msg_{number}"}],
    }
    with database.transaction() as session:
        session.add(tables.ResponseRow(**{**defaults, **fields}))
    return name(number)


def name(number: int) -> str:
    return f"resp_{number:016}"


def left(database: Database) -> list[str]:
    with database.snapshot() as session:
        return sorted(session.scalars(select(tables.ResponseRow.id)))


def test_a_conversation_is_that_of_its_branch(database: Database) -> None:
    make(database, 1)
    make(database, 2, previous=1)
    make(database, 3, previous=1)
    make(database, 4, previous=3)
    with database.snapshot() as session:
        found = responses.find_conversation(session, name(4), max_bytes=10)
    assert [item["id"] for item in found.items] == ["msg_1", "msg_3", "msg_4"]


def test_a_conversation_with_a_gap_is_not_found(database: Database) -> None:
    make(database, 1)
    make(database, 2, previous=1)
    make(database, 3, previous=2)
    with database.transaction() as session:
        responses.delete_one(session, name(1))
    with database.snapshot() as session, pytest.raises(PreviousResponseNotFound, match=name(1)):
        responses.find_conversation(session, name(3), max_bytes=10)


@pytest.mark.parametrize("status", [ResponseStatus.QUEUED, ResponseStatus.IN_PROGRESS])
def test_what_has_not_ended_can_t_be_continued(database: Database, status: ResponseStatus) -> None:
    make(database, 1, status=status)
    with database.snapshot() as session, pytest.raises(InvalidRequest, match=status):
        responses.find_conversation(session, name(1), max_bytes=10)


def test_expired_responses_are_deleted_unless_one_continues_them(database: Database) -> None:
    old = NOW - HOUR
    for number, previous, expires_at in [
        (1, None, old),
        (2, 1, old),
        (3, 2, NOW + HOUR),
        (4, 2, old),
        (5, None, old),
        (6, 5, old),
    ]:
        make(database, number, previous, expires_at=expires_at)
    with database.transaction() as session:
        responses.delete_expired(session, now=NOW)
    assert left(database) == [name(1), name(2), name(3)]
    with database.transaction() as session:
        responses.delete_expired(session, now=NOW + 2 * HOUR)
    assert left(database) == []


def test_an_expired_response_is_not_found(database: Database) -> None:
    make(database, 1, expires_at=NOW)
    with database.snapshot() as session:
        responses.get(session, name(1), now=NOW - HOUR)
        with pytest.raises(ResponseNotFound):
            responses.get(session, name(1), now=NOW)


def test_an_item_is_found_by_its_id(database: Database) -> None:
    item_id = responses.item_id("msg", name(1), 3)
    make(database, 1, items=[{"id": "msg_of_a_client"}, {"id": item_id, "text": "Hi"}])
    with database.snapshot() as session:
        assert responses.find_item(session, item_id) == {"id": item_id, "text": "Hi"}
        for other in (responses.item_id("msg", name(1), 4), responses.item_id("msg", name(2), 3), "msg_1"):
            assert responses.find_item(session, other) is None


def test_a_response_whose_process_is_gone_fails(database: Database) -> None:
    make(database, 1, status=ResponseStatus.QUEUED, alive_until=NOW)
    make(database, 2, status=ResponseStatus.IN_PROGRESS, alive_until=NOW + 2 * HOUR)
    with database.transaction() as session:
        assert responses.fail_abandoned(session, {"code": "gone"}, now=NOW + HOUR) == [name(1)]
    with database.snapshot() as session:
        gone, alive = (session.get_one(tables.ResponseRow, name(number)) for number in (1, 2))
    assert (gone.status, gone.content) == (ResponseStatus.FAILED, {"error": {"code": "gone"}})
    assert alive.status == ResponseStatus.IN_PROGRESS


def test_what_has_ended_changes_no_more(database: Database) -> None:
    make(database, 1, status=ResponseStatus.IN_PROGRESS, alive_until=NOW)
    with database.transaction() as session:
        assert responses.renew(session, name(1), alive_until=NOW + HOUR)
        assert responses.cancel(session, name(1))
        assert not responses.renew(session, name(1), alive_until=NOW + HOUR)
        assert not responses.cancel(session, name(1))
        late: dict[str, Any] = {"content": {}, "items": [], "size_bytes": 0}
        assert not responses.end(session, name(1), ResponseStatus.COMPLETED, **late)
        assert not responses.renew(session, name(2), alive_until=NOW)
    with database.snapshot() as session:
        row = session.get_one(tables.ResponseRow, name(1))
    assert (row.status, row.alive_until) == (ResponseStatus.CANCELLED, None)
