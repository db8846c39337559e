"""Texts and numbers that a database refuses are replaced before they are written, in every statement."""

import json
import math

import pytest
from sqlalchemy import select

from app.core.jobs import events
from app.core.jobs.events import Log
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.storage.stored_text import dump_json, to_storable
from tests.factories import make_job


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("a\0b", "a\ufffdb"),
        ("half \ud83d", "half \ufffd"),
        ("emoji \U0001f600", "emoji \U0001f600"),
        ("an escape \\u0000", "an escape \\u0000"),
    ],
)
def test_a_text_becomes_storable(text: str, stored: str) -> None:
    assert to_storable(text) == stored
    assert json.loads(dump_json({"key " + text: [text]})) == {"key " + stored: [stored]}


def test_numbers_that_json_lacks_become_null() -> None:
    assert json.loads(dump_json({"loss": math.nan, "all": [math.inf, 1.5]})) == {
        "loss": None,
        "all": [None, 1.5],
    }


def test_every_database_takes_what_an_error_says(each_database: Database) -> None:
    with each_database.transaction() as session:
        job = make_job(session, metadata={"note": "a\0b"})
        job.error_message = "binary \0 output, half \udc80"
        events.append(session, job.id, [Log(message="line\0end")])
    with each_database.snapshot() as session:
        note = tables.JobRow.spec["metadata"]["note"].as_string()
        assert session.execute(select(note, tables.JobRow.error_message)).one() == (
            "a\ufffdb",
            "binary \ufffd output, half \ufffd",
        )
        last = events.read_last(session, job.id, types=["log"])
    assert last == Log(message="line\ufffdend")


def test_a_text_with_nul_names_no_row(each_database: Database) -> None:
    with each_database.snapshot() as session:
        assert session.get(tables.JobRow, "job\0") is None
