"""The command line against the real API on a real socket."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.factories import CHAT_ROW, jsonl, make_adapter
from tests.fakes import FakeEngine, ServerThread

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the user's own profiles and environment. Returns the folder of profiles."""
    for name in (
        "TUNESMITH_URL",
        "TUNESMITH_API_KEY",
        "TUNESMITH_PROFILE",
        "TUNESMITH_HOST",
        "TUNESMITH_PORT",
        "FORCE_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def api(settings: Settings) -> Iterator[ServerThread]:
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


@pytest.fixture
def run(api: ServerThread) -> Run:
    """`tunesmith` with these arguments."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["--url", api.url, *arguments], input=stdin)

    return run


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.stop()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([CHAT_ROW]))
    return path


@pytest.fixture
def adapter(database: Database) -> str:
    """The name of a finished adapter."""
    with database.transaction() as session:
        return make_adapter(session).name


@pytest.fixture
def serving(engine: FakeEngine, database: Database, adapter: str) -> FakeEngine:
    """An engine that answers "Hello" for the adapter."""
    engine.register(database)
    return engine


def json_of(result: Result) -> Any:
    """The JSON document that a successful command printed."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
