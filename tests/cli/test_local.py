import importlib.util
import json
import subprocess

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


def test_keys_answer_in_json(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(settings.data_dir))
    made = json.loads(runner.invoke(administration, ["keys", "create", "laptop", "--json"]).stdout)
    assert made["key"].startswith("tsk_")
    assert json.loads(runner.invoke(administration, ["keys", "revoke", made["id"], "--json"]).stdout)
    (listed,) = json.loads(runner.invoke(administration, ["keys", "list", "--json"]).stdout)["data"]
    assert (listed["name"], listed["revoked_at"] is None) == ("laptop", False)
