"""Recognizing repeated requests by key or by content."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.core.errors.storage import IdempotencyKeyReused
from app.core.storage import idempotency, tables
from app.core.storage.database import Database
from app.core.storage.idempotency import Identity

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def request(**fields: Any) -> Identity:
    return Identity(**{"method": "POST", "path": "/jobs", "body": "b" * 64, "arrived_at": NOON, **fields})


def found(database: Database, asked: Identity, *, after: timedelta = MINUTE) -> str | None:
    with database.snapshot() as session:
        return idempotency.find(session, asked, now=NOON + after)


def remember(database: Database, made: Identity, resource_id: str = "job_1", at: datetime = NOON) -> None:
    with database.transaction() as session:
        row = idempotency.find_row(session, made)
        idempotency.remember(session, made, resource_id, row=row, now=at)


def test_a_key_returns_what_its_first_request_made(database: Database) -> None:
    remember(database, request(key="k"))
    assert found(database, request(key="k")) == "job_1"


def test_a_key_is_bound_to_its_body(database: Database) -> None:
    remember(database, request(key="k"))
    with pytest.raises(IdempotencyKeyReused):
        found(database, request(key="k", body="c" * 64))


@pytest.mark.parametrize("other", [{"path": "/datasets"}, {"method": "PUT"}, {"key": "K"}, {"key": None}])
def test_a_key_counts_within_its_method_and_path(database: Database, other: dict[str, Any]) -> None:
    remember(database, request(key="k"))
    assert found(database, request(**{"key": "k", **other})) is None


def test_a_key_is_free_again_after_a_day(database: Database) -> None:
    remember(database, request(key="k"))
    assert found(database, request(key="k"), after=timedelta(hours=24)) == "job_1"
    assert found(database, request(key="k", body="c" * 64), after=timedelta(hours=24, seconds=1)) is None


def test_a_retry_is_answered_from_the_request_with_the_same_content(database: Database) -> None:
    remember(database, request(), "job_1")
    remember(database, request(), "job_2", NOON + MINUTE)
    assert found(database, request(retries=1)) == "job_2"


def test_the_same_content_without_a_retry_header_is_a_new_request(database: Database) -> None:
    remember(database, request())
    assert found(database, request(arrived_at=NOON + MINUTE)) is None


@pytest.mark.parametrize("other", [{"client": "another key"}, {"body": "c" * 64}, {"path": "/v1/files"}])
def test_a_retry_that_differs_from_the_request_makes_its_own(
    database: Database, other: dict[str, Any]
) -> None:
    remember(database, request())
    assert found(database, request(retries=1, **other)) is None


def test_content_is_remembered_for_half_an_hour(database: Database) -> None:
    remember(database, request())
    assert found(database, request(retries=2), after=30 * MINUTE) == "job_1"
    assert found(database, request(retries=2), after=31 * MINUTE) is None


def test_a_request_that_its_own_retry_overtook_makes_nothing(database: Database) -> None:
    remember(database, request(retries=1), at=NOON + MINUTE)
    assert found(database, request(arrived_at=NOON)) == "job_1"
    assert found(database, request(arrived_at=NOON + 2 * MINUTE)) is None


def test_the_retry_of_a_failed_request_is_not_answered_from_an_earlier_one(database: Database) -> None:
    remember(database, request())
    with database.transaction() as session:
        idempotency.forget_earlier(session, request(arrived_at=NOON + MINUTE))
    assert found(database, request(retries=1)) is None


def test_a_failed_request_leaves_what_its_quicker_retry_made(database: Database) -> None:
    remember(database, request(retries=1), at=NOON + MINUTE)
    with database.transaction() as session:
        idempotency.forget_earlier(session, request(arrived_at=NOON))
    assert found(database, request(retries=2)) == "job_1"


def test_expired_rows_are_removed(database: Database) -> None:
    remember(database, request(key="old"))
    remember(database, request(key="young"), at=NOON + MINUTE)
    with database.transaction() as session:
        idempotency.prune(session, now=NOON + timedelta(hours=24) + MINUTE / 2)
        assert session.scalars(select(tables.IdempotencyKeyRow.id)).all() == [request(key="young").id]


def test_the_digest_depends_on_where_parts_end() -> None:
    assert idempotency.digest([b"ab", b"c"]) != idempotency.digest([b"a", b"bc"])
