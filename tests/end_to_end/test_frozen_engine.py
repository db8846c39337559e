"""An engine that has frozen is not ready, is replaced, and what froze it is not tried without end."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapter_archives import zipped_folder
from tests.end_to_end.box import Box, running_box
from tests.tiny_model import NAME
from tests.waiting import wait_for
from tests.worker.inference.conftest import ADAPTERS, save_adapter

pytestmark = pytest.mark.slow

WORKER = "tests.end_to_end.processes.freezing_worker"
ENGINE = "tests.end_to_end.processes.freezing_engine"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with running_box(tmp_path, engine_stall_seconds="2") as box:
        yield box


def is_ready(box: Box) -> bool:
    return box.client.get("/ready").status_code == 200


def test_what_froze_the_engine_twice_fails_and_others_are_served(box: Box, tmp_path: Path) -> None:
    worker = box.start_worker(module=WORKER)
    before = box.answer("Say 3", base_model=NAME)
    model, options = tmp_path / "models" / NAME, ADAPTERS["everything"]
    hostile = save_adapter(model, tmp_path / "hostile", **options)
    settings = json.loads((hostile / "adapter_config.json").read_text())
    (hostile / "adapter_config.json").write_text(json.dumps({**settings, "alpha_pattern": {"freezes": 1}}))

    failed = box.import_adapter(zipped_folder(hostile))

    assert failed["state"] == "failed"
    assert "froze while it tried the adapter, 2 times" in failed["error"]["message"]
    wait_for(lambda: is_ready(box), "the new engine")
    plain = box.import_adapter(zipped_folder(save_adapter(model, tmp_path / "plain", **options)))
    assert plain["state"] == "ready"
    assert box.answer("Say 3", base_model=NAME) == before

    engine = box.child(worker, ENGINE)
    assert engine is not None
    os.kill(engine.pid, signal.SIGSTOP)
    wait_for(lambda: not is_ready(box), "the frozen engine to be noticed")
    wait_for(lambda: is_ready(box), "the new engine")
    assert box.answer("Say 3", base_model=NAME) == before
