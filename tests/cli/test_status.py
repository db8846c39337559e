from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_job
from tests.fakes import FakeEngine


def test_the_status_names_workers_and_what_waits(run: Run, serving: FakeEngine, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
    shown = run("status")
    assert shown.exit_code == 0, shown.stderr
    assert "0 running, 1 waiting" in shown.stdout
    assert "serve" in shown.stdout
    assert json_of(run("status", "--json"))["queue"]["by_state"]["queued"] == 1


def test_a_missing_worker_is_said(run: Run) -> None:
    assert "No worker is alive" in run("status").stderr
