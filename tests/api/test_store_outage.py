"""An object store that hangs or is away: what needs it fails by name, and everything else is answered."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from app.api.http.store_threads import STORE_THREADS
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.factories import CHAT_ROW, jsonl
from tests.fakes import ServerThread

_hanging, _released = threading.Semaphore(0), threading.Event()


class HangingFileSystem(MemoryFileSystem):
    """An object store that takes connections and says nothing, until it is released, and then is away."""

    protocol = "hanging"

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        _hanging.release()
        _released.wait(60)
        raise RuntimeError("connection reset")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        raise RuntimeError("connection reset")


@pytest.fixture
def live(settings: Settings, database: Database) -> Iterator[httpx.Client]:
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    with database.transaction() as session:
        _key, secret = keys.create(session, "laptop")
    # By a name that is not loopback's, whose requests are looked at more closely.
    server = ServerThread(create_app(settings.model_copy(update={"artifacts_url": "hanging://bucket"})))
    headers = {"authorization": f"Bearer {secret}", "host": "box.example"}
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(base_url=server.url, timeout=30, headers=headers, limits=limits) as client:
        yield client
    _released.set()
    server.stop()


def test_uploads_that_hang_leave_threads_for_everything_else(live: httpx.Client) -> None:
    _released.clear()
    files = {"file": ("rows.jsonl", jsonl([CHAT_ROW]))}
    with ThreadPoolExecutor(STORE_THREADS + 5) as pool:
        uploads = [pool.submit(live.post, "/datasets", files=files) for _ in range(STORE_THREADS + 5)]
        for _ in range(STORE_THREADS):
            assert _hanging.acquire(timeout=60)
        try:
            assert live.get("/health").status_code == 200
            assert live.get("/jobs").status_code == 200
            reasons = live.get("/ready").json()["reasons"]
        finally:
            _released.set()
        assert reasons[0] == "The artifact store does not answer: connection reset"
        answers = [upload.result() for upload in uploads]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {
        (503, "store_unreachable")
    }
    assert answers[0].headers["retry-after"] == "5"
