"""Downloads of base models with real children, from a fake Hub into a real cache."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.base_models import downloads
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.servers.hub import TOKEN, FakeHub
from tests.servers.models import CONFIG, WEIGHT_BYTES, add_model
from worker.runners.downloads import DOWNLOADING_MODULE, DownloadHandler, DownloadRunner


@pytest.fixture(autouse=True)
def model(hub: FakeHub) -> FakeHub:
    add_model(hub, "owner/model")
    return hub


@pytest.fixture
def changes() -> list[str]:
    return []


@pytest.fixture
def runner(
    settings: Settings, database: Database, store: ArtifactStore, changes: list[str], stop: threading.Event
) -> DownloadRunner:
    handler = DownloadHandler(settings, lambda: changes.append("changed"))
    return DownloadRunner(settings, database, store, handler, stop=stop)


def run(runner: DownloadRunner, database: Database, name: str = "owner/model") -> tables.ModelDownloadRow:
    with database.transaction() as session:
        key = downloads.submit(session, name, max_waiting=9).id
    lease = runner.claim()
    assert lease is not None
    runner.run(lease)
    with database.snapshot() as session:
        return downloads.get(session, key)


def test_a_model_arrives_in_the_cache_without_pickles(
    runner: DownloadRunner, database: Database, changes: list[str], tmp_path: Path
) -> None:
    found = run(runner, database)
    assert (found.state, found.error) == ("succeeded", None)
    assert found.done_bytes == found.total_bytes
    assert found.total_bytes is not None
    assert found.total_bytes > WEIGHT_BYTES + len(str(CONFIG)) // 2
    arrived = {path.name for path in (tmp_path / "hf" / "hub").glob("models--owner--model/snapshots/*/*")}
    assert arrived == {"config.json", "model.safetensors"}
    assert changes


@pytest.mark.parametrize(
    ("name", "code"), [("owner/gated", "model_gated"), ("owner/missing", "model_missing")]
)
def test_a_download_that_the_hub_refuses_says_why(
    runner: DownloadRunner, database: Database, hub: FakeHub, name: str, code: str
) -> None:
    add_model(hub, "owner/gated", is_gated=True)
    found = run(runner, database, name)
    assert (found.state, (found.error or {})["code"]) == ("failed", code)
    assert TOKEN not in str(found.error)


def test_a_hub_that_is_away_is_named(runner: DownloadRunner, database: Database, hub: FakeHub) -> None:
    hub.broken_status = 503
    assert (run(runner, database).error or {})["code"] == "hub_unreachable"


@pytest.fixture
def stalled(runner: DownloadRunner, database: Database, hub: FakeHub) -> Iterator[str]:
    """The id of a download whose weights do not arrive, and which ends with the test."""
    hub.stalls_downloads = True
    with database.transaction() as session:
        key = downloads.submit(session, "owner/model", max_waiting=9).id
    lease = runner.claim()
    assert lease is not None
    thread = threading.Thread(target=runner.run, args=(lease,))
    thread.start()
    assert hub.has_stalled.wait(60)
    yield key
    thread.join(60)
    assert not thread.is_alive()


def test_a_cancelled_download_ends_and_the_next_one_arrives(
    stalled: str, runner: DownloadRunner, database: Database, hub: FakeHub
) -> None:
    (child,) = find_children(DOWNLOADING_MODULE)
    with database.snapshot() as session:
        assert (downloads.get(session, stalled).total_bytes or 0) > WEIGHT_BYTES
    with database.transaction() as session:
        # A second request for the same model is the same download.
        assert downloads.submit(session, "owner/model", max_waiting=1).id == stalled
        downloads.cancel(session, stalled)
    child.wait(30)
    hub.stalls_downloads = False
    assert run(runner, database).state == "succeeded"
