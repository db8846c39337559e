"""Exports by the real API, worker and child that are killed, cancelled, or fill the disk."""

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.end_to_end.box import Box, Process
from tests.factories import make_adapter
from tests.scripted.pause_points import FOLDER, PausePoints
from tests.small_disk import fill, mounted, remove_filler
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for
from tests.worker.exports.conftest import save_adapter

pytestmark = pytest.mark.slow

CHILD = "tests.end_to_end.processes.paused_export"
# Two files from one merge, where the quantizer is installed a K-quant.
TWO_TYPES = {"format": "gguf", "type": ["q8_0", "q4_k_m" if find_spec("xllamacpp") else "q4_0"]}
# More than the spare space that an export requires.
MEGABYTES = 160


class Stand:
    """A box with an adapter to export, and its workers."""

    def __init__(self, folder: Path, *, is_small: bool) -> None:
        self.folder, self.is_small = folder, is_small
        base = make_tiny_model(folder / "models")
        self.box = Box(folder, folder / "models", lease_seconds="6", max_lost_attempts="9")
        self.box.environment[FOLDER] = str(folder / "pauses")
        self.pauses = PausePoints(folder / "pauses")
        self.exports = folder / "data" / "exports"
        settings = Settings(data_dir=folder / "data")
        self.store = ArtifactStore(settings.artifacts_url)
        self.box.start_api()
        self.store.put_folder("adapters/ad_0000000000000000", save_adapter(base, folder / "adapter", r=2))
        database = Database(settings.database_url)
        with database.transaction() as session:
            quantization = QuantizationSpec().model_dump(mode="json")
            make_adapter(session, base_model=NAME, quantization=quantization)
        database.close()

    def start_worker(self) -> Process:
        return self.box.start_worker(wait=False, module="tests.end_to_end.processes.paused_worker")

    def submit(self, **spec: Any) -> str:
        return str(self.box.get_good(self.box.client.post("/adapters/helper/exports", json=spec))["id"])

    def export(self, export_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.box.get_good(self.box.client.get(f"/exports/{export_id}"))
        return found

    def wait_for_state(self, export_id: str, *states: str) -> dict[str, Any]:
        return wait_for(
            lambda: found if (found := self.export(export_id))["state"] in states else None,
            f"{export_id} to be {' or '.join(states)}",
            timeout_seconds=180,
        )

    def child(self, worker: Process) -> psutil.Process:
        found = self.box.child(worker, CHILD)
        assert found is not None
        return found

    def assert_nothing_is_handed_out(self, export_id: str) -> None:
        assert self.export(export_id)["files"] == []
        assert self.box.client.get(f"/exports/{export_id}/download").status_code == 409

    def wait_until_nothing_is_left(self) -> None:
        wait_for(lambda: not list(self.exports.glob("*")), "the exports' folder to be empty")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("stand") / "disk"
    with mounted(folder, MEGABYTES) as is_mounted:
        stand = Stand(folder, is_small=is_mounted)
        try:
            yield stand
        finally:
            stand.box.close()


@pytest.fixture
def worker(stand: Stand) -> Iterator[Process]:
    process = stand.start_worker()
    yield process
    process.terminate()
    process.wait(60)


def kill(process: Process | psutil.Process) -> None:
    process.kill()
    process.wait(30)


def test_an_export_that_is_killed_at_every_stage_is_downloadable_only_when_it_is_complete(
    stand: Stand,
) -> None:
    stand.pauses.set("merging", "converting", "storing")
    export_id = stand.submit(**TWO_TYPES)
    first = stand.start_worker()

    stand.pauses.wait_for("merging")
    child = stand.child(first)
    kill(first)
    child.wait(30)
    stand.assert_nothing_is_handed_out(export_id)
    assert not (stand.exports / export_id / "merged").exists()

    second = stand.start_worker()
    stand.pauses.wait_for("converting")
    stand.pauses.set("merging")
    kill(stand.child(second))
    stand.assert_nothing_is_handed_out(export_id)
    assert (stand.exports / export_id / "merged").exists()

    stand.pauses.wait_for("storing")
    kill(second)
    stand.assert_nothing_is_handed_out(export_id)
    assert stand.store.list_files(f"exports/{export_id}")

    third = stand.start_worker()
    export = stand.wait_for_state(export_id, "succeeded", "failed")
    assert (export["state"], export["attempts"]) == ("succeeded", 4)
    # No attempt after the first whole merge has merged again.
    stand.pauses.unset("merging")
    files = {file["name"]: file["sha256"] for file in export["files"]}
    stored = stand.store.list_files(f"exports/{export_id}")
    assert sorted(path.rsplit("/", 1)[-1] for path in stored) == sorted(files)
    for name, sha256 in files.items():
        content = stand.box.client.get(f"/exports/{export_id}/download", params={"file": name}).content
        assert hashlib.sha256(content).hexdigest() == sha256
    stand.wait_until_nothing_is_left()
    third.terminate()
    third.wait(60)


@pytest.mark.parametrize(
    ("point", "spec"),
    [("merging", {"format": "merged"}), ("converting", TWO_TYPES), ("storing", {"format": "merged"})],
    ids=["merging", "converting", "storing"],
)
def test_a_cancelled_export_leaves_nothing(
    stand: Stand, worker: Process, point: str, spec: dict[str, Any]
) -> None:
    stand.pauses.set(point)
    export_id = stand.submit(**spec)
    stand.pauses.wait_for(point)
    child = stand.box.child(worker, CHILD)

    assert stand.box.client.post(f"/exports/{export_id}/cancel").status_code == 202
    if child is not None:
        child.wait(30)
    stand.pauses.resume(point)

    stand.wait_until_nothing_is_left()
    wait_for(lambda: not stand.store.list_files(f"exports/{export_id}"), "the store to be empty")
    assert stand.export(export_id)["state"] == "cancelled"
    stand.assert_nothing_is_handed_out(export_id)


def test_a_disk_that_fills_up_fails_the_export_and_a_retry_goes_on_from_the_merged_model(
    stand: Stand, worker: Process
) -> None:
    """The database is on the same disk."""
    if not stand.is_small:
        pytest.skip("mounting a small file system needs root: the full disk is NOT tested")
    stand.pauses.set("converting")
    export_id = stand.submit(**TWO_TYPES)
    stand.pauses.wait_for("converting")
    fill(stand.folder)
    stand.pauses.resume("converting")

    export = stand.wait_for_state(export_id, "failed", "succeeded")

    assert (export["state"], export["error"]["code"]) == ("failed", "disk_full")
    stand.assert_nothing_is_handed_out(export_id)
    left = {path.name for path in (stand.exports / export_id).iterdir()}
    assert left == {"merged", "merged.json"}
    remove_filler(stand.folder)
    stand.pauses.set("merging")
    assert stand.box.client.post(f"/exports/{export_id}/retry").status_code == 202
    assert stand.wait_for_state(export_id, "failed", "succeeded")["state"] == "succeeded"
    stand.pauses.unset("merging")
