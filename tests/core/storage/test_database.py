"""Which errors of a database are outages, and how processes that start together bring it to this version."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError, TimeoutError as PoolTimeout

from app.core.settings import Settings
from app.core.storage.database import Database, is_migrated
from app.core.storage.outages import OutageLog, is_unavailable
from tests.postgres import PostgresServer

_MIGRATE = "import sys; from app.core.storage.database import migrate; sys.stdin.read(); migrate(sys.argv[1])"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{settings.data_dir / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_template")
    yield server.make_database("not_migrated")
    server.drop_database("not_migrated")


def test_processes_that_start_together_migrate_an_empty_database_once(empty_url: str) -> None:
    command = [sys.executable, "-c", _MIGRATE, empty_url]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    found = [(process.wait(60), process.stderr.read()) for process in processes if process.stderr]
    for process in processes:
        assert process.stderr is not None
        process.stderr.close()
    assert [status for status, _ in found] == [0, 0, 0], found
    database = Database(empty_url)
    assert is_migrated(database)
    database.close()


def test_what_a_statement_means_is_no_outage(each_database: Database) -> None:
    with pytest.raises(SQLAlchemyError) as raised, each_database.transaction() as session:
        session.execute(text("INSERT INTO attempts (job_id) VALUES (NULL)"))
    assert not is_unavailable(raised.value)


def test_a_server_that_ends_a_connection_is_an_outage(postgres_url: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(SQLAlchemyError) as raised, database.transaction() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert is_unavailable(raised.value)
    database.close()


def test_a_database_that_can_t_be_reached_or_has_no_free_connection_is_an_outage() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:9/nothing")
    pytest.importorskip("psycopg")
    with pytest.raises(SQLAlchemyError) as raised, database.transaction() as session:
        session.execute(text("SELECT 1"))
    assert is_unavailable(raised.value)
    assert is_unavailable(PoolTimeout())
    assert not is_unavailable(ValueError())


def test_an_outage_is_logged_once_a_minute_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    outages = OutageLog(clock=iter([0.0, 1.0, 59.0, 61.0, 70.0]).__next__)
    for _ in range(4):
        with pytest.raises(PoolTimeout), outages.watch():
            raise PoolTimeout("no connection is free")
    for _ in range(2):
        with outages.watch():
            pass
    with pytest.raises(SQLAlchemyError), outages.watch():
        raise SQLAlchemyError("a wrong statement")
    words = "The database does not answer: no connection is free"
    assert caplog.messages == [words, words, "The database answers again, after 70 s"]
