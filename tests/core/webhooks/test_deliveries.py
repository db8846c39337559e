"""The outbox of webhooks: deliveries of a job's end, their claims, results and repetitions."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors.webhooks import DeliveryNotFound
from app.core.jobs import queue, records as job_records
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.webhooks import deliveries, subscriptions
from app.core.webhooks.deliveries import Claim, DeliveryOutcome, DeliveryState
from app.core.webhooks.subscriptions import EventType
from app.core.work.failures import WorkFailure
from tests.factories import make_job, make_webhook

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DONE = DeliveryOutcome(200, None)
BROKEN = DeliveryOutcome(500, "It answered 500.")
FAILURE = WorkFailure("out_of_memory", "Out of memory.")


def announce(database: Database, *, count: int = 1, now: datetime = NOON) -> None:
    with database.transaction() as session:
        for _ in range(count):
            job_id = make_job(session).id
            deliveries.announce(session, job_id, job_records.JobState.SUCCEEDED, now=now)


def claim(database: Database, now: datetime, **fields: Any) -> list[Claim]:
    with database.transaction() as session:
        return deliveries.claim(session, **{"limit": 16, "each": 16, "now": now, **fields})


def record(database: Database, claim: Claim, outcome: DeliveryOutcome, now: datetime) -> bool:
    with database.transaction() as session:
        return deliveries.record(session, claim, outcome, now=now)


def find_all(database: Database) -> list[tables.WebhookDeliveryRow]:
    with database.snapshot() as session:
        return list(session.scalars(select(tables.WebhookDeliveryRow)))


def leased(session: Session) -> JobLease:
    make_job(session)
    lease = queue.claim(session, "worker-1", lease_seconds=30, now=NOON)
    assert lease
    return lease


def succeed(session: Session) -> None:
    queue.succeed(session, leased(session), adapter_name="helper")


def fail(session: Session) -> None:
    queue.fail(session, leased(session), FAILURE)


def finish_cancelled(session: Session) -> None:
    queue.finish_cancelled(session, leased(session))


def cancel_waiting(session: Session) -> None:
    job_records.request_cancel(session, make_job(session).id)


def lose_too_often(session: Session) -> None:
    queue.give_up_attempt(session, leased(session), FAILURE, max_lost_attempts=1)


def expire_too_often(session: Session) -> None:
    leased(session)
    queue.requeue_expired(session, max_lost_attempts=1)


def hand_back_cancelled(session: Session) -> None:
    lease = leased(session)
    job_records.request_cancel(session, lease.job_id)
    queue.release(session, lease, reason="The worker stops.")


ENDS = [
    (succeed, EventType.SUCCEEDED),
    (fail, EventType.FAILED),
    (finish_cancelled, EventType.CANCELLED),
    (cancel_waiting, EventType.CANCELLED),
    (lose_too_often, EventType.FAILED),
    (expire_too_often, EventType.FAILED),
    (hand_back_cancelled, EventType.CANCELLED),
]


@pytest.mark.parametrize(("end", "event_type"), ENDS)
def test_every_end_of_a_job_is_announced(
    database: Database, end: Callable[[Session], None], event_type: EventType
) -> None:
    with database.transaction() as session:
        make_webhook(session)
        end(session)
    (delivery,) = find_all(database)
    assert delivery.event_type == event_type
    assert f'"type":"{event_type}","data":{{"id":"{delivery.job_id}"}}' in delivery.body


def test_a_job_that_has_not_ended_is_not_announced(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
        queue.release(session, leased(session), reason="The worker stops.")
    assert find_all(database) == []


def test_an_end_that_is_rolled_back_is_not_announced(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
        job_id = make_job(session).id
    with contextlib.suppress(ZeroDivisionError), database.transaction() as session:
        job_records.request_cancel(session, job_id)
        raise ZeroDivisionError
    assert find_all(database) == []


def test_only_webhooks_of_the_event_get_a_delivery(database: Database) -> None:
    with database.transaction() as session:
        wanting = make_webhook(session, event_types=[EventType.CANCELLED]).id
        make_webhook(session, event_types=[EventType.FAILED])
        make_webhook(session, is_enabled=False)
        cancel_waiting(session)
    assert [delivery.webhook_id for delivery in find_all(database)] == [wanting]


def test_listeners_are_called_once_an_end_is_committed(database: Database) -> None:
    heard: list[int] = []
    database.listen(deliveries.TOPIC, lambda: heard.append(len(find_all(database))))
    with database.transaction() as session:
        make_webhook(session)
        make_job(session)
    assert heard == []
    with database.transaction() as session:
        cancel_waiting(session)
    assert heard == [1]


def test_two_deliverers_never_hold_the_same_delivery(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
    announce(database, count=3)
    first = claim(database, NOON, limit=2)
    second = claim(database, NOON)
    assert len({one.delivery_id for one in first + second}) == len(first) + len(second) == 3


def test_a_delivery_whose_process_died_is_due_again_after_its_lease(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
    announce(database)
    (lost,) = claim(database, NOON)
    lease = timedelta(seconds=deliveries.LEASE_SECONDS)
    assert claim(database, NOON + lease - SECOND) == []
    (again,) = claim(database, NOON + lease)
    assert (again.delivery_id, again.body) == (lost.delivery_id, lost.body)
    assert not record(database, lost, DONE, NOON + lease)
    assert record(database, again, DONE, NOON + lease)


def test_one_webhook_does_not_take_every_claim(database: Database) -> None:
    with database.transaction() as session:
        busy = make_webhook(session).id
    announce(database, count=6)
    with database.transaction() as session:
        other = make_webhook(session).id
    announce(database, now=NOON + SECOND)
    first = claim(database, NOON + SECOND, each=4)
    assert [one.webhook_id for one in first].count(busy) == 4
    second = claim(database, NOON + SECOND, each=4, busy=[busy])
    assert {one.webhook_id for one in first + second} == {busy, other}
    assert busy not in [one.webhook_id for one in second]


def test_waits_double_until_a_day_has_passed(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
    announce(database)
    now, times = NOON, []
    while claims := claim(database, now):
        times.append(now)
        record(database, claims[0], BROKEN, now)
        (delivery,) = find_all(database)
        now = delivery.next_attempt_at or now + timedelta(days=99)
    waits = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert 4 <= waits[0] <= 6
    assert all(2 * 0.8 / 1.2 <= after / before <= 2 * 1.2 / 0.8 for before, after in pairwise(waits))
    assert timedelta(hours=8) < times[-1] - NOON <= timedelta(hours=24)
    assert (delivery.state, delivery.next_attempt_at) == (DeliveryState.GIVEN_UP, None)
    assert (delivery.attempts, delivery.response_status) == (len(times), 500)


def test_chance_spreads_the_wait_by_a_fifth() -> None:
    assert [deliveries.wait_seconds(3, chance) for chance in (0, 0.5, 1)] == pytest.approx([16, 20, 24])


def test_a_delivered_delivery_is_not_sent_again_by_itself(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
    announce(database)
    record(database, claim(database, NOON)[0], DONE, NOON)
    assert claim(database, NOON + timedelta(days=1)) == []
    (delivery,) = find_all(database)
    assert (delivery.state, delivery.delivered_at) == (DeliveryState.DELIVERED, NOON)


def test_a_delivery_that_is_sent_again_has_another_day(database: Database) -> None:
    later = NOON + timedelta(days=2)
    with database.transaction() as session:
        webhook_id = make_webhook(session).id
    announce(database)
    (first,) = claim(database, NOON)
    record(database, first, DONE, NOON)
    with database.transaction() as session:
        deliveries.send_again(session, webhook_id, first.delivery_id, now=later)
    (again,) = claim(database, later)
    record(database, again, BROKEN, later)
    (delivery,) = find_all(database)
    assert again.delivery_id == first.delivery_id
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 1)


def test_a_delivery_requested_again_during_an_attempt_is_sent_twice(database: Database) -> None:
    with database.transaction() as session:
        webhook_id = make_webhook(session).id
    announce(database)
    (first,) = claim(database, NOON)
    with database.transaction() as session:
        deliveries.send_again(session, webhook_id, first.delivery_id, now=NOON + SECOND)
    assert not record(database, first, DONE, NOON + SECOND)
    (again,) = claim(database, NOON + SECOND)
    assert again.delivery_id == first.delivery_id
    assert record(database, again, DONE, NOON + SECOND)


def test_a_delivery_belongs_to_its_webhook(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
    announce(database)
    (delivery,) = find_all(database)
    with database.transaction() as session, pytest.raises(DeliveryNotFound):
        deliveries.send_again(session, make_webhook(session).id, delivery.id)


def test_deliveries_to_a_disabled_webhook_wait(database: Database) -> None:
    with database.transaction() as session:
        webhook_id = make_webhook(session).id
    announce(database)
    with database.transaction() as session:
        subscriptions.change(session, webhook_id, is_enabled=False)
        assert not deliveries.is_any_due(session, now=NOON)
        subscriptions.change(session, webhook_id, is_enabled=True)
        assert deliveries.is_any_due(session, now=NOON)


def test_old_deliveries_are_removed(database: Database) -> None:
    with database.transaction() as session:
        make_webhook(session)
    announce(database)
    announce(database, now=NOON + SECOND)
    with database.transaction() as session:
        deliveries.prune(session, now=NOON + deliveries.KEEP + SECOND)
    assert [delivery.created_at for delivery in find_all(database)] == [NOON + SECOND]


def test_deleting_a_webhook_deletes_its_deliveries(database: Database) -> None:
    with database.transaction() as session:
        webhook_id = make_webhook(session).id
    announce(database)
    (held,) = claim(database, NOON)
    with database.transaction() as session:
        subscriptions.delete(session, webhook_id)
    assert not record(database, held, DONE, NOON)
    assert find_all(database) == []


def test_the_webhook_of_the_settings_follows_them(database: Database, settings: Settings) -> None:
    for url in ("https://example.org/one", "https://example.org/two"):
        settings.webhook_url = url
        with database.transaction() as session:
            subscriptions.follow_settings(session, settings)
            (found,), _ = subscriptions.find_page(session, after=None, limit=10)
            assert (found.url, found.secret) == (url, None)
    settings.webhook_url = ""
    with database.transaction() as session:
        cancel_waiting(session)
        subscriptions.follow_settings(session, settings)
        assert subscriptions.find_page(session, after=None, limit=10) == ([], None)
    assert find_all(database) == []
