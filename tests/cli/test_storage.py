from app.core.jobs import records as job_records
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_job


def test_what_grows_is_listed_and_deleted_of_what_has_ended(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
        job_records.request_cancel(session, make_job(session).id)
    listed = run("storage", "list").stdout
    assert "events\t3\t\t2" in listed
    assert "checkpoints\t0\t0 B\t0\t0 B\tafter 90 days" in listed
    assert run("storage", "rm", "events").exit_code == 2  # nobody can be asked
    assert json_of(run("storage", "rm", "events", "--older-than", "1", "-y", "--json"))["deleted"] == 0
    assert json_of(run("storage", "rm", "events", "--yes", "--json"))["deleted"] == 2
