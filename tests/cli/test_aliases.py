"""`tunesmith aliases`, and asking by an alias."""

import pytest

from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.factories import make_adapter
from tests.fakes import FakeEngine


@pytest.fixture(autouse=True)
def adapters(database: Database) -> None:
    with database.transaction() as session:
        for name in ("v1", "v2"):
            make_adapter(session, id=f"ad_{name}", name=name)


def test_an_alias_is_set_shared_rolled_back_and_deleted(run: Run) -> None:
    assert run("aliases", "set", "support", "v1").stdout == "support  version 1  v1\n"
    assert (
        run("aliases", "set", "support", "v1=0.9", "v2=0.1").stdout == "support  version 2  v1 0.9, v2 0.1\n"
    )
    assert "v1 0.9, v2 0.1" in run("aliases", "list").stdout
    assert run("aliases", "rollback", "support").stdout == "support  version 3  v1\n"
    assert run("aliases", "rm", "support", "--yes").exit_code == 0
    shown = run("aliases", "show", "support")
    assert "it was deleted" in shown.stdout
    assert "rollback to 1" in shown.stdout
    assert json_of(run("aliases", "rollback", "support", "--to", "2", "--json"))["version"] == 5


def test_a_change_may_expect_a_version(run: Run) -> None:
    assert run("aliases", "set", "support", "v1", "--if-version", "0").exit_code == 0
    assert run("aliases", "set", "support", "v2", "--if-version", "1").exit_code == 0
    lost = run("aliases", "set", "support", "v1", "--if-version", "1")
    assert (lost.exit_code, "is of version 2 now" in lost.stderr) == (6, True)
    assert "`tunesmith aliases show support`" in lost.stderr


@pytest.mark.parametrize("targets", [("v1", "v2"), ("v1=0.5", "v2"), ("v1=half", "v2=0.5")])
def test_of_several_models_each_needs_a_share(run: Run, targets: tuple[str, str]) -> None:
    assert run("aliases", "set", "support", *targets).exit_code == 2


def test_an_alias_is_asked_and_one_model_serves_a_conversation(
    run: Run, engine: FakeEngine, database: Database
) -> None:
    engine.register(database)
    run("aliases", "set", "support", "v1=0.5", "v2=0.5")
    assert run("generate", "support", "Hi").stdout == "Hello\n"
    engine.requests.clear()
    run("chat", "support", stdin="Hi\n" * 12)
    assert len({asked.adapter.id for asked in engine.requests if asked.adapter}) == 1
    assert len(engine.requests) == 12
