import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import app.__main__ as api
import worker.__main__ as worker
from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.jobs import queue
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.main import create_app, sweep_once
from tests.factories import make_job

ROOT = Path(__file__).parents[1]
runner = CliRunner()


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(settings.data_dir))
    return monkeypatch


def refuse_to_serve(self: Any) -> None:
    raise AssertionError("the API started")


def test_the_api_keeps_idle_connections_longer_than_httpx_reuses_them(settings: Settings) -> None:
    """httpx does not repeat a request on a connection that the server has just closed."""
    config = api.server_config(create_app(settings), settings)
    assert config.timeout_keep_alive > (httpx.Limits().keepalive_expiry or 0)


def test_the_api_imports_no_ml_library() -> None:
    script = (
        "import sys, app.main, app.__main__\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'bitsandbytes', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_sweep_requeues_the_job_of_a_dead_worker_and_forgets_the_worker(
    settings: Settings, database: Database
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    with database.transaction() as session:
        job = make_job(session)
        queue.claim(session, "worker-1", lease_seconds=30, now=long_ago)
        workers.heartbeat(session, WorkerReport("worker-1", ["train"]), now=long_ago)
    sweep_once(create_app(settings).state.services)
    with database.snapshot() as session:
        found = session.get(type(job), job.id)
        assert found is not None
        assert found.state == "queued"
        assert workers.find_alive(session, lease_seconds=10**6) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "box.example"])
def test_a_host_that_others_reach_needs_a_key(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("TUNESMITH_HOST", host)
    environment.setattr(api.Server, "run", refuse_to_serve)
    ended = runner.invoke(api.cli, [])
    assert ended.exit_code == 2
    assert "Set TUNESMITH_API_KEY" in ended.output
    assert "tunesmith keys create" in ended.output


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_loopback_needs_none(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("TUNESMITH_HOST", host)
    environment.setattr(api.Server, "run", lambda self: None)
    assert runner.invoke(api.cli, []).exit_code == 0


def test_a_container_s_port_published_on_the_loopback_needs_none(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TUNESMITH_HOST", "0.0.0.0")
    environment.setenv("TUNESMITH_PUBLISHED_HOST", "127.0.0.1")
    environment.setattr(api.Server, "run", lambda self: None)
    assert runner.invoke(api.cli, []).exit_code == 0


def test_a_container_s_port_published_to_others_needs_a_key(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TUNESMITH_HOST", "127.0.0.1")
    environment.setenv("TUNESMITH_PUBLISHED_HOST", "0.0.0.0")
    environment.setattr(api.Server, "run", refuse_to_serve)
    assert runner.invoke(api.cli, []).exit_code == 2


def test_an_empty_key_file_is_no_key(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    environment.setenv("TUNESMITH_API_KEY_FILE", str(tmp_path / "key"))
    assert Settings().api_key is None


def test_a_backup_goes_to_a_file_and_comes_back(
    environment: pytest.MonkeyPatch, database: Database, tmp_path: Path
) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    taken = runner.invoke(api.cli, ["backup", str(tmp_path / "box.tar")])
    assert taken.exit_code == 0
    assert "1 jobs" in taken.stderr
    environment.setenv("TUNESMITH_DATA_DIR", str(tmp_path / "elsewhere"))
    assert runner.invoke(api.cli, ["restore", str(tmp_path / "box.tar")]).exit_code == 0
    restored = Database(Settings().database_url)
    with restored.snapshot() as session:
        assert session.get(tables.JobRow, job_id)
    restored.close()


def test_a_backup_overwrites_nothing(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "box.tar").write_text("precious")
    assert runner.invoke(api.cli, ["backup", str(tmp_path / "box.tar")]).exit_code == 1
    assert (tmp_path / "box.tar").read_text() == "precious"


def test_a_backup_of_a_database_without_tables_says_so_and_leaves_no_file(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("TUNESMITH_DATA_DIR", str(tmp_path / "new"))
    ended = runner.invoke(api.cli, ["backup", str(tmp_path / "box.tar")])
    assert ended.exit_code == 1
    assert "There is no backup. no such table" in ended.stderr
    assert [path.name for path in tmp_path.glob("box*")] == []


@pytest.mark.parametrize("content", [None, b"not a tar"])
def test_a_restore_says_why_it_can_t(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "box.tar").write_bytes(content)
    ended = runner.invoke(api.cli, ["restore", str(tmp_path / "box.tar")])
    assert ended.exit_code == 1
    assert "box.tar" in ended.stderr or "can't be read" in ended.stderr


def test_a_key_in_force_makes_any_host_safe(environment: pytest.MonkeyPatch, database: Database) -> None:
    environment.setenv("TUNESMITH_HOST", "0.0.0.0")
    environment.setattr(api.Server, "run", lambda self: None)
    with database.transaction() as session:
        key, _ = keys.create(session, "laptop")
    assert runner.invoke(api.cli, []).exit_code == 0
    with database.transaction() as session:
        keys.revoke(session, key.id)
    assert runner.invoke(api.cli, []).exit_code == 2


def test_a_bad_setting_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TUNESMITH_PORT", "many")
    ended = runner.invoke(api.cli, [])
    assert ended.exit_code == 2
    assert ended.output.startswith("TUNESMITH_PORT: ")


def test_a_key_is_made_listed_and_revoked(environment: pytest.MonkeyPatch, database: Database) -> None:
    secret = runner.invoke(api.cli, ["keys", "create", "laptop"]).stdout.strip()
    with database.snapshot() as session:
        assert keys.find_valid(session, secret)
        (key,) = keys.find_all(session)
    assert secret not in runner.invoke(api.cli, ["keys", "list"]).output
    assert runner.invoke(api.cli, ["keys", "revoke", key.id]).exit_code == 0
    assert "revoked" in runner.invoke(api.cli, ["keys", "list"]).output
    with database.snapshot() as session:
        assert not keys.find_valid(session, secret)


def test_revoking_an_unknown_key_fails(environment: pytest.MonkeyPatch) -> None:
    ended = runner.invoke(api.cli, ["keys", "revoke", "key_x"])
    assert ended.exit_code == 1
    assert "There is no key 'key_x'." in ended.output


def test_the_migrations_match_the_tables() -> None:
    assert runner.invoke(api.cli, ["check-migrations"]).exit_code == 0


def test_a_table_without_a_migration_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "migrate", lambda url: Database(url).engine.connect().close())
    ended = runner.invoke(api.cli, ["check-migrations"])
    assert ended.exit_code == 1


@pytest.fixture
def newer_database(environment: pytest.MonkeyPatch, settings: Settings, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")


@pytest.mark.usefixtures("newer_database")
@pytest.mark.parametrize("command", [[], ["keys", "list"], ["keys", "create", "x"], ["backup"], ["restore"]])
def test_a_database_of_a_newer_version_is_one_sentence(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.Server, "run", refuse_to_serve)
    tar = tmp_path / "box.tar"
    if command == ["restore"]:
        tar.write_bytes(b"")
    path = [str(tar)] if command in (["backup"], ["restore"]) else []
    ended = runner.invoke(api.cli, [*command, *path])
    assert ended.exit_code == 1
    assert "The database is of a newer version of Tunesmith (its schema is 9999)" in ended.output
    assert len(ended.output.strip().splitlines()) == 1
    assert command != ["backup"] or not tar.exists()


@pytest.mark.usefixtures("newer_database")
def test_a_worker_does_not_wait_for_a_newer_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["worker"])
    assert worker.main() == 1
    found = capsys.readouterr().err
    assert "The database is of a newer version of Tunesmith" in found
