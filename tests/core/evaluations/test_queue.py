"""The queue of evaluations: who may work on one, what is stored, and what a person may ask."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.errors import QueueFull
from app.core.errors.adapters import AdapterInUse
from app.core.errors.evaluations import (
    EvaluationAlreadyEnded,
    EvaluationNotEnded,
    EvaluationNotRetryable,
)
from app.core.errors.work import LeaseLost
from app.core.evaluations import records
from app.core.evaluations.answers import Answer, AnswerError, StoredGrade
from app.core.evaluations.queue import EvaluationLease, RecordedAnswer, evaluation_queue
from app.core.keys import records as keys, usage
from app.core.keys.records import KeyLimits
from app.core.keys.usage import Amounts, UsageKey
from app.core.specs.states import EvaluationPhase, EvaluationState
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.core.evaluations.evaluations import MODELS, make_evaluation
from tests.factories import make_adapter, make_webhook

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PASSED = StoredGrade(score=1.0, passed=True)


def claim(session: Session, *, now: datetime = NOW, max_attempts: int = 3) -> EvaluationLease | None:
    return evaluation_queue.claim(session, lease_seconds=30, max_attempts=max_attempts, now=now)


@pytest.fixture
def database(each_database: Database) -> Database:
    return each_database


@pytest.fixture
def lease(database: Database) -> EvaluationLease:
    with database.transaction() as session:
        make_evaluation(session)
        lease = claim(session)
    assert lease is not None
    return lease


def row_of(database: Database, lease: EvaluationLease) -> tables.EvaluationRow:
    with database.snapshot() as session:
        return records.get(session, lease.evaluation_id)


def test_a_claimed_evaluation_runs(database: Database, lease: EvaluationLease) -> None:
    row = row_of(database, lease)
    assert (row.state, row.phase, row.attempts) == (EvaluationState.RUNNING, EvaluationPhase.PREPARING, 1)
    assert (row.rows, row.total) == (2, 4)
    with database.transaction() as session:
        assert claim(session) is None


def test_an_answer_is_counted_once_it_is_graded(database: Database, lease: EvaluationLease) -> None:
    answer = Answer(text="2", finish_reason="stop")
    failed = Answer(error=AnswerError(code="prompt_too_long", message="Too long."))
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=[RecordedAnswer(0, 0, answer)])
    assert row_of(database, lease).done == 0
    graded = [RecordedAnswer(0, 0, answer, [PASSED]), RecordedAnswer(0, 1, failed, [PASSED])]
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=graded, waiting_for="An engine.")
    row = row_of(database, lease)
    assert (row.done, row.failed, row.waiting_for) == (2, 1, "An engine.")
    with database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(tables.EvaluationAnswerRow)) == 2


def test_a_lost_lease_stores_nothing(database: Database, lease: EvaluationLease) -> None:
    later = NOW + timedelta(seconds=31)
    with database.transaction() as session:
        assert claim(session, now=later) is not None
    with database.transaction() as session, pytest.raises(LeaseLost):
        evaluation_queue.record(session, lease, answers=[RecordedAnswer(0, 0, Answer(text="2"))])


def test_an_evaluation_that_is_lost_too_often_fails(database: Database, lease: EvaluationLease) -> None:
    with database.transaction() as session:
        assert claim(session, now=NOW + timedelta(seconds=31), max_attempts=1) is None
    row = row_of(database, lease)
    assert row.state == EvaluationState.FAILED
    assert row.error is not None
    assert row.error["code"] == "worker_lost"


def test_webhooks_are_called_when_an_evaluation_ends(database: Database, lease: EvaluationLease) -> None:
    with database.transaction() as session:
        make_webhook(session)
        evaluation_queue.finish(session, lease, {"rows": 0})
    with database.snapshot() as session:
        delivery = session.scalars(select(tables.WebhookDeliveryRow)).one()
    assert delivery.event_type == "eval.run.succeeded"
    assert json.loads(delivery.body)["data"] == {"id": lease.evaluation_id}


def test_a_cancelled_evaluation_can_be_retried_and_has_its_answers(
    database: Database, lease: EvaluationLease
) -> None:
    answer = RecordedAnswer(0, 0, Answer(text="2"), [PASSED])
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=[answer])
        records.cancel(session, lease.evaluation_id)
    with database.transaction() as session, pytest.raises(EvaluationAlreadyEnded):
        records.cancel(session, lease.evaluation_id)
    with database.transaction() as session:
        assert records.retry(session, lease.evaluation_id).done == 1
    with database.transaction() as session, pytest.raises(EvaluationNotRetryable):
        records.retry(session, lease.evaluation_id)


def test_a_retry_asks_again_what_has_an_error_and_nothing_else(
    database: Database, lease: EvaluationLease
) -> None:
    error = AnswerError(code="engine_failed", message="It broke off.")
    answers = [
        RecordedAnswer(0, 0, Answer(text="2"), [PASSED]),
        RecordedAnswer(0, 1, Answer(error=error), [StoredGrade(score=None)]),
        RecordedAnswer(1, 0, Answer(text="4"), [StoredGrade(score=None, error=error)]),
    ]
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=answers)
        evaluation_queue.finish(session, lease, {})
    with database.transaction() as session:
        row = records.retry(session, lease.evaluation_id)
        assert (row.state, row.done, row.failed, row.results) == (EvaluationState.QUEUED, 1, 0, None)
        found = session.scalars(
            select(tables.EvaluationAnswerRow).order_by(tables.EvaluationAnswerRow.number)
        )
        left = [(one.number, one.model, one.grades is None) for one in found]
    assert left == [(0, 0, False), (1, 0, True)]


def test_an_evaluation_without_errors_is_not_retried(database: Database, lease: EvaluationLease) -> None:
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=[RecordedAnswer(0, 0, Answer(text="2"), [PASSED])])
        evaluation_queue.finish(session, lease, {})
    with database.transaction() as session, pytest.raises(EvaluationNotRetryable):
        records.retry(session, lease.evaluation_id)


def test_an_evaluation_is_deleted_with_its_rows_and_answers(
    database: Database, lease: EvaluationLease
) -> None:
    with database.transaction() as session, pytest.raises(EvaluationNotEnded):
        records.delete(session, lease.evaluation_id)
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=[RecordedAnswer(0, 0, Answer(text="2"))])
        evaluation_queue.fail(session, lease, WorkFailure("evaluation_failed", "It failed."))
        records.delete(session, lease.evaluation_id)
    with database.snapshot() as session:
        for table in (tables.EvaluationRow, tables.EvaluationItemRow, tables.EvaluationAnswerRow):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_an_adapter_of_a_waiting_evaluation_is_not_deleted(database: Database) -> None:
    with database.transaction() as session:
        adapter = make_adapter(session)
        evaluation = make_evaluation(session, models=[MODELS[0], MODELS[1] | {"adapter": adapter.id}])
        with pytest.raises(AdapterInUse, match=evaluation.id):
            adapter_records.delete(session, adapter.id)
        records.cancel(session, evaluation.id)
        adapter_records.delete(session, adapter.id)


def test_more_evaluations_than_may_wait_are_refused(database: Database) -> None:
    with database.transaction() as session:
        make_evaluation(session, max_waiting=1)
        with pytest.raises(QueueFull):
            make_evaluation(session, max_waiting=1)


def test_what_waits_is_not_taken_while_the_tokens_of_its_key_are_spent(each_database: Database) -> None:
    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    with each_database.transaction() as session:
        key, _ = keys.create(session, "ci", limits=KeyLimits(tokens_per_day=10))
        row = make_evaluation(session)
        row.key_id = key.id
        usage.add(session, {UsageKey(key.id, noon.date(), "helper"): Amounts(prompt_tokens=4)})
        assert records.find_held(session, [row], now=noon) == set()
        usage.add(session, {UsageKey(key.id, noon.date(), "owner/model"): Amounts(completion_tokens=6)})
        assert records.find_held(session, [row], now=noon) == {row.id}
        assert evaluation_queue.claim(session, lease_seconds=30, max_attempts=3, now=noon) is None
        # Those of others are.
        other = make_evaluation(session)
        lease = evaluation_queue.claim(session, lease_seconds=30, max_attempts=3, now=noon)
        assert lease is not None
        assert lease.key == other.id
        lease = evaluation_queue.claim(
            session, lease_seconds=30, max_attempts=3, now=noon + timedelta(hours=12)
        )
        assert lease is not None
        assert lease.key == row.id
