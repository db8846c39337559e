"""Requests that arrive together find what they name in one snapshot of the database."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import event

from app.api.generate.lookups import TargetLookups
from app.core.adapters.targets import Target, Targets
from app.core.aliases import records as alias_records
from app.core.aliases.shares import AliasTarget
from app.core.engine import workers
from app.core.errors import NotFound
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.factories import make_adapter
from tests.fakes import FakeEngine


class CountedDatabase:
    """Counts the snapshots of a database; `before_snapshot` is called before each."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.snapshots = 0
        self.before_snapshot = lambda: None

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[object]:
        self.snapshots += 1
        self.before_snapshot()
        with self._database.snapshot() as session:
            yield session


@pytest.fixture
def counted(engine: FakeEngine, database: Database) -> CountedDatabase:
    engine.register(database)
    with database.transaction() as session:
        for name in ("one", "two"):
            make_adapter(session, id=f"ad_{name}", name=name)
    return CountedDatabase(database)


@pytest.fixture
def lookups(settings: Settings, counted: CountedDatabase) -> TargetLookups:
    return TargetLookups(settings, counted)  # type: ignore[arg-type]


@pytest.fixture
def statements(database: Database) -> list[str]:
    """The statements that the database has executed."""
    executed: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda _connection, _cursor, text, *_: executed.append(text)
    )
    return executed


async def find_all(lookups: TargetLookups, names: list[str]) -> list[Target | BaseException]:
    finds = [lookups.find(lambda targets, name=name: targets.find_named(name), name) for name in names]
    return await asyncio.gather(*finds, return_exceptions=True)


def test_requests_that_arrive_together_take_one_snapshot(
    lookups: TargetLookups, counted: CountedDatabase
) -> None:
    names = ["one", "two"] * 50

    found = asyncio.run(find_all(lookups, names))

    assert [target.name for target in found] == names
    assert counted.snapshots == 1


def test_many_names_take_as_many_queries_as_one(
    lookups: TargetLookups, database: Database, statements: list[str]
) -> None:
    with database.transaction() as session:
        for index in range(20):
            make_adapter(session, id=f"ad_{index}", name=f"name-{index}")
    statements.clear()
    asyncio.run(find_all(lookups, ["one"]))
    count = len(statements)

    found = asyncio.run(find_all(lookups, [f"name-{index}" for index in range(20)]))

    assert [target.adapter.id for target in found] == [f"ad_{index}" for index in range(20)]
    assert len(statements) == 2 * count


def test_an_adapter_and_its_alias_are_found_together(lookups: TargetLookups, database: Database) -> None:
    with database.transaction() as session:
        target = AliasTarget(name="one", base_model="base", adapter="ad_one")
        alias_records.put(session, "alias", [target], base_models=())

    by_id, by_name, by_alias = asyncio.run(find_all(lookups, ["ad_one", "one", "alias"]))

    assert [one.adapter.id for one in (by_id, by_name, by_alias)] == ["ad_one"] * 3
    assert (by_name.alias, by_alias.alias) == (None, "alias")


def test_a_request_that_arrives_during_a_snapshot_has_one_of_its_own(
    lookups: TargetLookups, counted: CountedDatabase, database: Database
) -> None:
    """What was finished before a request arrived is found, whenever the snapshot before it began."""

    async def ask() -> list[Target | BaseException]:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()
        counted.before_snapshot = lambda: loop.call_soon_threadsafe(began.set)
        first = asyncio.create_task(find_all(lookups, ["one"]))
        await began.wait()
        with database.transaction() as session:
            make_adapter(session, id="ad_three", name="three")
        return await first + await find_all(lookups, ["three"])

    found = asyncio.run(ask())

    assert [target.name for target in found] == ["one", "three"]
    assert counted.snapshots == 2


def test_an_error_is_that_of_its_own_request(lookups: TargetLookups) -> None:
    one, missing, two = asyncio.run(find_all(lookups, ["one", "nothing", "two"]))

    assert (one.name, two.name) == ("one", "two")
    assert isinstance(missing, NotFound)


def test_a_fault_of_the_database_reaches_every_request_and_the_next_one_asks_again(
    lookups: TargetLookups, counted: CountedDatabase
) -> None:
    def fail() -> None:
        raise ConnectionError("away")

    async def ask() -> list[Target | BaseException]:
        counted.before_snapshot = fail
        failed = await find_all(lookups, ["one", "two"])
        counted.before_snapshot = lambda: None
        return failed + await find_all(lookups, ["one"])

    *failed, found = asyncio.run(ask())

    assert [type(error) for error in failed] == [ConnectionError, ConnectionError]
    assert found.name == "one"


def test_a_client_that_leaves_takes_nothing_from_the_others(lookups: TargetLookups) -> None:
    async def ask() -> str:
        leaving = asyncio.create_task(find_all(lookups, ["one"]))
        staying = asyncio.create_task(find_all(lookups, ["two"]))
        await asyncio.sleep(0)
        leaving.cancel()
        return (await staying)[0].name

    assert asyncio.run(ask()) == "two"


def test_one_request_reads_the_workers_once(lookups: TargetLookups, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    find_alive = workers.find_alive

    def count(*args: object, **options: object) -> object:
        reads.append(1)
        return find_alive(*args, **options)

    monkeypatch.setattr(workers, "find_alive", count)

    def find_both(targets: Targets) -> Target:
        targets.find_adapter("one")
        return targets.find_named("two")

    assert asyncio.run(lookups.find(find_both)).name == "two"
    assert len(reads) == 1
