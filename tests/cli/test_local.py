import importlib.util
import json
import subprocess
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from app.__main__ import cli as administration
from app.cli import cli
from app.core.settings import Settings

runner = CliRunner()


def test_the_doctor_needs_the_worker_and_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ended = runner.invoke(cli, ["doctor"])
    assert ended.exit_code == 1
    assert "docker compose exec worker tunesmith doctor" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["doctor"], ["-m", "worker", "--check"]),
        (["backup", "-"], ["-m", "app", "backup", "-"]),
        (["restore", "box.tar"], ["-m", "app", "restore", "box.tar"]),
        (["keys", "create", "laptop"], ["-m", "app", "keys", "create", "laptop"]),
    ],
)
def test_what_needs_the_machine_is_run_as_a_process_and_its_status_passed_on(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], run: list[str]
) -> None:
    started: list[list[str]] = []

    def fake_run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        started.append(command[1:])
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", fake_run)
    assert runner.invoke(cli, arguments).exit_code == 3
    assert started == [run]


@pytest.mark.parametrize("arguments", [["keys", "-h"], ["keys", "create", "-h"], ["backup", "-h"], ["-h"]])
def test_administration_has_a_short_option_for_help(arguments: list[str]) -> None:
    ended = runner.invoke(administration, arguments)
    assert (ended.exit_code, "Usage:" in ended.stdout) == (0, True)


def test_the_first_key_says_that_every_request_needs_one_now(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(settings.data_dir))
    said = [runner.invoke(administration, ["keys", "create", name]).stderr for name in ("first", "second")]
    assert ["refuses every request without a key" in text for text in said] == [True, False]


def test_the_version_is_printed() -> None:
    assert runner.invoke(cli, ["--version"]).stdout == f"tunesmith {version('tunesmith')}\n"


def test_keys_answer_in_json(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(settings.data_dir))
    made = json.loads(runner.invoke(administration, ["keys", "create", "laptop", "--json"]).stdout)
    assert made["key"].startswith("tsk_")
    assert json.loads(runner.invoke(administration, ["keys", "revoke", made["id"], "--json"]).stdout)
    (listed,) = json.loads(runner.invoke(administration, ["keys", "list", "--json"]).stdout)["data"]
    assert (listed["name"], listed["revoked_at"] is None) == ("laptop", False)
