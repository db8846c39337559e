"""`jobs priority`, `evaluations priority` and `exports priority`."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from app.core.storage import tables
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.core.evaluations.evaluations import make_evaluation
from tests.core.exports.test_queue import submit as make_export
from tests.factories import make_job

MAKE: dict[str, Callable[[Session], tables.QueuedRow]] = {
    "jobs": make_job,
    "evaluations": make_evaluation,
    "exports": make_export,
}


@pytest.mark.parametrize("noun", MAKE)
def test_what_waits_gets_another_place(run: Run, database: Database, noun: str) -> None:
    with database.transaction() as session:
        first, second = MAKE[noun](session).id, MAKE[noun](session).id

    raised = run(noun, "priority", second, "3")
    assert raised.stdout == f"{second}  priority 3, at place 1\n"
    # A negative one is no option.
    assert run(noun, "priority", first, "-3").stdout == f"{first}  priority -3, at place 2\n"
    assert json_of(run(noun, "priority", first, "-4", "--json"))["spec"]["priority"] == -4
    assert "at place 1, priority 3" in run(noun, "show", second).stdout
    assert run(noun, "priority", first, "11").exit_code == 2
    with database.transaction() as session:
        row = session.get(type(MAKE[noun](session)), first)
        assert row is not None
        row.state = "cancelled"
    refused = run(noun, "priority", first, "1")
    assert refused.exit_code == 6
    assert "is cancelled: a priority counts while it waits" in refused.stderr
