"""Changes that share a transaction behave as if each were alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.core.errors import QueueFull
from app.core.jobs import records as job_records
from app.core.specs.states import JobState
from app.core.storage.database import Database
from app.core.storage.group_commit import GroupCommit
from tests.factories import make_job, make_spec
from tests.waiting import wait_for


def count_commits(database: Database) -> list[object]:
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)
    return commits


def block_commits(commits: GroupCommit, pool: ThreadPoolExecutor) -> threading.Event:
    """Block the group until the event is set, so that changes that arrive meanwhile wait."""
    entered, let_go = threading.Event(), threading.Event()

    def hold(_session: Session) -> None:
        entered.set()
        let_go.wait(20)

    pool.submit(commits.run, hold)
    entered.wait(20)
    return let_go


def test_changes_that_arrive_during_a_commit_are_committed_together(database: Database) -> None:
    commits = GroupCommit(database)
    with ThreadPoolExecutor(9) as pool:
        let_go = block_commits(commits, pool)
        done = [pool.submit(commits.run, lambda session: make_job(session).id) for _ in range(8)]
        wait_for(lambda: len(commits._waiting) == 8, "changes that wait")
        count = count_commits(database)
        let_go.set()
        ids = {one.result() for one in done}
    assert len(ids) == 8
    assert len(count) == 1
    with database.snapshot() as session:
        assert job_records.count_by_state(session)[JobState.QUEUED] == 8


def test_a_change_that_fails_does_not_undo_the_others(database: Database) -> None:
    commits = GroupCommit(database)

    def submit(session: Session) -> str:
        return job_records.submit(session, make_spec(), max_queued=3, flush=False).id

    with ThreadPoolExecutor(9) as pool:
        let_go = block_commits(commits, pool)
        done = [pool.submit(commits.run, submit) for _ in range(8)]
        wait_for(lambda: len(commits._waiting) == 8, "changes that wait")
        let_go.set()
    assert sum(isinstance(one.exception(), QueueFull) for one in done) == 5
    with database.snapshot() as session:
        assert job_records.count_by_state(session)[JobState.QUEUED] == 3


def test_a_change_that_fails_is_rolled_back(database: Database) -> None:
    def fail(session: Session) -> None:
        make_job(session)
        raise QueueFull

    with pytest.raises(QueueFull):
        GroupCommit(database).run(fail)
    with database.snapshot() as session:
        assert job_records.count_by_state(session)[JobState.QUEUED] == 0


def test_more_changes_than_fit_into_one_transaction_are_all_committed(database: Database) -> None:
    commits = GroupCommit(database)
    with ThreadPoolExecutor(130) as pool:
        let_go = block_commits(commits, pool)
        done = [pool.submit(commits.run, lambda session: make_job(session).id) for _ in range(120)]
        wait_for(lambda: len(commits._waiting) == 120, "changes that wait")
        let_go.set()
    assert len({one.result() for one in done}) == 120
