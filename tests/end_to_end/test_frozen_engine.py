"""An engine that has frozen is not ready, is replaced, and what froze it is not tried without end."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.box import Box
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for
from tests.worker.inference.conftest import ADAPTERS, save_adapter

pytestmark = pytest.mark.slow

WORKER = "tests.end_to_end.processes.freezing_worker"
ENGINE = "tests.end_to_end.processes.freezing_engine"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    make_tiny_model(tmp_path / "models")
    box = Box(tmp_path, tmp_path / "models", engine_stall_seconds="2")
    try:
        box.start_api()
        yield box
    finally:
        box.close()


def is_ready(box: Box) -> bool:
    return box.client.get("/ready").status_code == 200


def send(box: Box, folder: Path) -> str:
    archive = Path(shutil.make_archive(str(folder), "zip", folder)).read_bytes()
    sent = box.client.post("/adapters", files={"file": ("a.zip", archive)}, data={"base_model": NAME})
    return str(box.get_good(sent)["id"])


def wait_for_import(box: Box, adapter_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = box.get_good(box.client.get(f"/adapters/{adapter_id}"))
        return found if found["state"] != "importing" else None

    return wait_for(look, "the import")


def test_what_froze_the_engine_twice_fails_and_others_are_served(box: Box, tmp_path: Path) -> None:
    worker = box.start_worker(module=WORKER)
    before = box.answer("Say 3", base_model=NAME)
    model, options = tmp_path / "models" / NAME, ADAPTERS["everything"]
    hostile = save_adapter(model, tmp_path / "hostile", **options)
    settings = json.loads((hostile / "adapter_config.json").read_text())
    (hostile / "adapter_config.json").write_text(json.dumps({**settings, "alpha_pattern": {"freezes": 1}}))

    failed = wait_for_import(box, send(box, hostile))

    assert failed["state"] == "failed"
    assert "froze while it tried the adapter, 2 times" in failed["error"]["message"]
    wait_for(lambda: is_ready(box), "the new engine")
    plain = wait_for_import(box, send(box, save_adapter(model, tmp_path / "plain", **options)))
    assert plain["state"] == "ready"
    assert box.answer("Say 3", base_model=NAME) == before

    engine = box.child(worker, ENGINE)
    assert engine is not None
    os.kill(engine.pid, signal.SIGSTOP)
    wait_for(lambda: not is_ready(box), "the frozen engine to be noticed")
    wait_for(lambda: is_ready(box), "the new engine")
    assert box.answer("Say 3", base_model=NAME) == before
