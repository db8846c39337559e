"""Which of some adapters are deleted."""

from app.core.adapters import records
from app.core.storage.database import Database
from tests.factories import make_adapter


def test_adapters_without_a_row_are_missing(database: Database) -> None:
    with database.transaction() as session:
        there = make_adapter(session).id
        assert records.find_missing(session, [there, "ad_gone"]) == ["ad_gone"]
        assert records.find_missing(session, []) == []
