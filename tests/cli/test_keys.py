"""`tunesmith keys` of another machine's API, and `tunesmith usage`."""

from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.core.keys import records, usage
from app.core.keys.usage import Amounts, UsageKey
from app.core.storage.database import Database
from tests.cli.conftest import json_of
from tests.fakes import ServerThread


@pytest.fixture
def run(api: ServerThread, database: Database) -> Any:
    """`tunesmith` with the first key."""
    with database.transaction() as session:
        _, secret = records.create(session, "me")

    def run(*arguments: str, key: str = secret) -> Any:
        return CliRunner().invoke(cli, ["--url", api.url, "--api-key", key, *arguments])

    return run


def test_a_key_is_made_changed_and_revoked(run: Any) -> None:
    made = run(
        *("keys", "create", "app", "--scope", "infer", "--scope", "read"),
        *("--requests-per-minute", "60", "--expires-in-days", "30"),
    )
    assert made.exit_code == 0, made.stderr
    secret = made.stdout.strip()
    found = json_of(run("keys", "self", "--json", key=secret))
    assert (found["name"], found["scopes"]) == ("app", ["infer", "read"])
    listed = run("keys", "list").stdout
    assert "60 requests a minute" in listed
    assert secret not in listed

    changed = json_of(run("keys", "change", found["id"], "--tokens-per-day", "1000", "--json"))
    assert changed["limits"] == {"requests_per_minute": 60, "queued_jobs": None, "tokens_per_day": 1000}
    assert run("keys", "change", found["id"], "--no-limits").exit_code == 0
    assert "none" in run("keys", "show", found["id"]).stdout
    assert run("keys", "create", "more", key=secret).exit_code == 4
    assert run("keys", "revoke", found["id"]).exit_code == 0
    assert "revoked" in run("keys", "show", found["id"]).stdout


def test_nothing_to_change_is_said(run: Any) -> None:
    assert run("keys", "change", "key_x").exit_code == 2


def test_usage_is_listed_by_day_key_and_model(run: Any, database: Database) -> None:
    with database.transaction() as session:
        (key,) = records.find_all(session)
        today = datetime.now(UTC).date()
        used = Amounts(requests=2, prompt_tokens=1200, completion_tokens=30, training_seconds=1800)
        usage.add(session, {UsageKey(key.id, today, "helper"): used})
    assert run("usage").stdout.split("\n")[1].split("\t") == [
        str(today),
        "me",
        "helper",
        *("2", "1,200", "30", "0", "0.50", "0.00"),
    ]
    assert (
        "Nothing was used"
        in run("usage", "--model", "other").stdout + run("usage", "--model", "other").stderr
    )
