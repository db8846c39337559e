"""Aliases in the database: versions, rollbacks, and who wins where two change one at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.core.adapters import records as adapter_records
from app.core.aliases import records
from app.core.aliases.records import Expectation
from app.core.aliases.shares import AliasTarget
from app.core.errors.adapters import AdapterInUse
from app.core.errors.aliases import AliasChanged, AliasNotFound, AliasTargetGone
from app.core.storage.database import Database
from tests.factories import make_adapter

V1 = AliasTarget(name="v1", base_model="owner/model", adapter="ad_v1")
V2 = AliasTarget(name="v2", base_model="owner/model", adapter="ad_v2")
BASE = AliasTarget(name="owner/model", base_model="owner/model")


@pytest.fixture
def database(each_database: Database) -> Database:
    """A database of each kind with the adapters v1 and v2."""
    with each_database.transaction() as session:
        for name in ("v1", "v2"):
            make_adapter(session, id=f"ad_{name}", name=name)
    return each_database


def put(database: Database, *targets: AliasTarget, expected: Expectation = records.ANYTHING) -> int:
    with database.transaction() as session:
        return records.put(session, "support", targets, base_models=[], expected=expected).version


def roll_back(database: Database, version: int | None = None) -> int:
    with database.transaction() as session:
        return records.roll_back(session, "support", version, base_models=[]).version


def now(database: Database) -> list[str]:
    with database.snapshot() as session:
        return [target.name for target in records.targets_of(records.get(session, "support"))]


def history(database: Database) -> list[tuple[int, str, list[str]]]:
    with database.snapshot() as session:
        rows, _ = records.find_versions(session, "support", before=None, limit=100)
        return [
            (row.version, row.action, [target.name for target in records.targets_of(row)]) for row in rows
        ]


def test_every_change_is_a_version(database: Database) -> None:
    put(database, V1)
    put(database, V2)
    put(database, V2)

    assert history(database) == [(2, "put", ["v2"]), (1, "put", ["v1"])]


def test_a_rollback_goes_back_and_a_second_one_undoes_it(database: Database) -> None:
    put(database, V1)
    put(database, V2)

    roll_back(database)
    assert now(database) == ["v1"]
    roll_back(database)
    assert now(database) == ["v2"]
    roll_back(database, 1)
    assert now(database) == ["v1"]
    assert [version for version, *_ in history(database)] == [5, 4, 3, 2, 1]


def test_a_deleted_alias_comes_back_and_no_version_comes_twice(database: Database) -> None:
    put(database, V1)
    with database.transaction() as session:
        records.delete(session, "support")
    with pytest.raises(AliasNotFound, match="no alias"):
        now(database)

    assert roll_back(database) == 3
    assert now(database) == ["v1"]


def test_there_is_nothing_before_the_first_version(database: Database) -> None:
    put(database, V1)

    with pytest.raises(AliasNotFound, match="no earlier version"):
        roll_back(database)
    with pytest.raises(AliasNotFound, match="no version 7"):
        roll_back(database, 7)


def test_an_adapter_that_an_alias_points_to_is_not_deleted(database: Database) -> None:
    put(database, V1)
    with (
        pytest.raises(AdapterInUse, match="'support' points to adapter 'v1'"),
        database.transaction() as session,
    ):
        adapter_records.delete(session, "v1")

    put(database, V2)
    with database.transaction() as session:
        adapter_records.delete(session, "v1")
    with pytest.raises(AliasTargetGone, match="points to v1"):
        roll_back(database)
    assert now(database) == ["v2"]


def test_a_change_of_a_version_that_is_gone_changes_nothing(database: Database) -> None:
    put(database, V1)
    put(database, V2)

    for expected in (Expectation(versions=[1]), Expectation(versions=[]), Expectation(exists=False)):
        with pytest.raises(AliasChanged):
            put(database, V1, expected=expected)
    assert now(database) == ["v2"]
    assert put(database, V1, expected=Expectation(versions=[2])) == 3


def test_of_many_who_saw_one_version_one_wins(database: Database) -> None:
    put(database, V1)

    def change(number: int) -> bool:
        target = AliasTarget(name=f"owner/{number}", base_model=f"owner/{number}")
        try:
            put(database, target, expected=Expectation(versions=[1]))
        except AliasChanged:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(change, range(8)))
    assert won.count(True) == 1
    assert now(database) == [f"owner/{won.index(True)}"]


def test_old_versions_are_deleted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_VERSIONS", 3)
    for number in range(5):
        put(database, V1 if number % 2 else V2)

    assert [version for version, *_ in history(database)] == [5, 4, 3]
