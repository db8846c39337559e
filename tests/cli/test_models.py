"""Base models on the command line, over an API whose engine asks a fake Hub."""

import threading

from app.core.base_models.queue import download_queue
from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.api.base_models.conftest import CacheEngine, box, hub
from tests.cli.conftest import Run, json_of
from tests.servers.hub import FakeHub
from tests.servers.models import add_model
from tests.waiting import wait_for

__all__ = ["box", "hub"]


def test_models_are_listed(run: Run, settings: Settings) -> None:
    (settings.models_folder / "small").mkdir(parents=True)
    (settings.models_folder / "small" / "config.json").write_text("{}")
    assert "small\ton disk" in run("models").stdout
    assert [model["name"] for model in json_of(run("models", "--json"))["data"]] == ["small"]
    assert [model["name"] for model in json_of(run("models", "list", "--json"))["data"]] == ["small"]


def test_the_hub_is_searched(run: Run, box: CacheEngine, hub: FakeHub) -> None:
    add_model(hub, "owner/seven")
    add_model(hub, "owner/other")
    assert "owner/seven\t7.0B\t14.0 GB\t\tapache-2.0\t1.0k" in run("models", "search", "seven").stdout
    assert json_of(run("models", "search", "sev", "--json"))["data"][0]["name"] == "owner/seven"
    hub.broken_status = 503
    failed = run("models", "search", "seven")
    assert failed.exit_code == 1
    assert "503" in failed.stderr


def test_a_downloaded_model_is_deleted(run: Run, box: CacheEngine) -> None:
    box.add("owner/model")
    assert "owner/model\ton disk\t1 kB" in run("models").stdout
    assert run("models", "rm", "owner/model").exit_code == 2  # nobody can be asked
    assert run("models", "rm", "owner/model", "--yes").exit_code == 0
    assert "owner/model" not in run("models").stdout
    assert "No base model is here yet" in run("models").stderr
    assert "base_models\t0" in run("storage", "list").stdout
    assert run("models", "rm", "owner/model", "--yes").exit_code == 5


def test_a_download_is_followed_to_its_end(run: Run, database: Database) -> None:
    def fail() -> None:
        with database.transaction() as session:
            lease = download_queue.claim(session, lease_seconds=30, max_attempts=3)
            if lease is None:
                return
            gated = WorkFailure("model_gated", "It is gated.", "Accept its terms.")
            download_queue.fail(session, lease, gated)
            failed.set()

    failed = threading.Event()
    worker = threading.Thread(target=lambda: wait_for(lambda: fail() or failed.is_set(), "a download"))
    worker.start()
    ended = run("models", "download", "owner/model")
    worker.join()
    assert ended.exit_code == 1
    assert "Accept its terms." in ended.stderr
    key = run("models", "download", "owner/other", "--no-wait").stdout.strip()
    assert f"{key}\towner/other\tqueued" in run("models", "downloads").stdout
    assert "cancelled" in run("models", "cancel", key).stdout
    assert run("models", "cancel", key).exit_code == 6
