import json
import os
import socket
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.cli.connection.profiles import Connection, find_connection, write_profile
from app.core.keys import records as keys
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.fakes import ServerThread

runner = CliRunner()


@pytest.fixture
def unused_url() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def key(database: Database) -> str:
    with database.transaction() as session:
        return keys.create(session, "laptop")[1]


def test_an_unreachable_api_is_an_error_with_a_hint(unused_url: str) -> None:
    ended = runner.invoke(cli, ["--url", unused_url, "jobs", "list"])
    assert ended.exit_code == 3
    assert f"No API answers at {unused_url}" in ended.stderr
    assert "tunesmith up" in ended.stderr


def test_an_error_in_json_leaves_standard_output_empty(unused_url: str) -> None:
    ended = runner.invoke(cli, ["--url", unused_url, "jobs", "list", "--json"])
    assert ended.stdout == ""
    assert json.loads(ended.stderr)["error"]["code"] == "unreachable"


@pytest.mark.parametrize("given", [[], ["--api-key", "wrong"]])
def test_a_missing_or_wrong_key_has_a_status_of_its_own(run: Run, key: str, given: list[str]) -> None:
    ended = run(*given, "models")
    assert ended.exit_code == 4
    assert "Hint: Give a key that is in force" in ended.stderr


def test_the_key_may_come_from_the_environment(run: Run, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", key)
    assert json_of(run("jobs", "list", "--json")) == {"data": []}


def test_login_asks_for_a_key_and_saves_it_for_this_user_alone(
    run: Run, api: ServerThread, key: str, own_configuration: Path
) -> None:
    ended = run("login", stdin=f"{key}\n")
    assert ended.exit_code == 0, ended.stderr
    assert key not in ended.output
    path = own_configuration / "tunesmith" / "config.toml"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert json_of(runner.invoke(cli, ["jobs", "list", "--json"])) == {"data": []}


def test_login_saves_nothing_that_is_refused(run: Run, key: str, own_configuration: Path) -> None:
    assert run("--api-key", "wrong", "login").exit_code == 4
    assert not own_configuration.exists()


def test_the_port_that_the_api_listens_on_is_that_of_the_command_line_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNESMITH_PORT", "8123")
    monkeypatch.setenv("TUNESMITH_HOST", "0.0.0.0")
    assert find_connection(None, None, None).url == "http://127.0.0.1:8123"
    write_profile("default", Connection("http://box:8000"))
    assert find_connection(None, None, None).url == "http://box:8000"


def test_a_saved_key_goes_to_its_own_api_alone() -> None:
    write_profile("default", Connection("http://box:8000", "secret"))
    assert find_connection(None, None, None) == Connection("http://box:8000", "secret")
    assert find_connection("http://box:8000/", None, None).api_key == "secret"
    assert find_connection("http://elsewhere", None, None).api_key is None


def test_several_profiles_are_saved() -> None:
    write_profile("default", Connection("http://one", 'a"b\\c'))
    write_profile("gpu box", Connection("http://two"))
    assert find_connection(None, None, None) == Connection("http://one", 'a"b\\c')
    assert find_connection(None, None, "gpu box") == Connection("http://two")


@pytest.mark.parametrize(
    "arguments",
    [["--profile", "none", "models"], ["--url", "box:8000", "models"], ["jobs", "frobnicate"], []],
)
def test_wrong_usage_has_status_2(arguments: list[str]) -> None:
    assert runner.invoke(cli, arguments).exit_code == 2


def test_another_server_is_recognised(api: ServerThread) -> None:
    ended = runner.invoke(cli, ["--url", f"{api.url}/docs", "models"])
    assert ended.exit_code == 5


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_is_made(shell: str) -> None:
    # What --show-completion prints once it has looked which shell it was called from.
    ended = runner.invoke(cli, [], prog_name="tunesmith", env={"_TUNESMITH_COMPLETE": f"source_{shell}"})
    assert ended.exit_code == 0
    assert "_TUNESMITH_COMPLETE" in ended.stdout


def test_names_are_completed_from_the_api(run: Run, rows: Path, api: ServerThread) -> None:
    run("datasets", "add", str(rows), "--name", "helper")
    asked = {
        "_TUNESMITH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"tunesmith --url {api.url} datasets show he",
        "COMP_CWORD": "5",
    }
    ended = runner.invoke(cli, [], prog_name="tunesmith", env=asked)
    assert ended.stdout.split() == ["helper"]
