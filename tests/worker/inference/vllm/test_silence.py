"""A vLLM that has been stopped accepts requests and sends nothing."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from app.core.engine.messages import Delta, Failed, Reply
from app.core.storage.artifacts import ArtifactStore
from tests.waiting import wait_for
from tests.worker.inference.fakes import make_sequence
from tests.worker.inference.vllm.stand_in import VllmStandIn
from worker.inference.batching.sequence import Sequence
from worker.inference.vllm import client, engine as vllm_engine
from worker.inference.vllm.adapter_folders import AdapterFolders
from worker.inference.vllm.client import VllmClient
from worker.inference.vllm.engine import VllmEngine


@pytest.fixture
def served() -> Iterator[VllmStandIn]:
    stand_in = VllmStandIn("base")
    stand_in.holds = True
    yield stand_in
    stand_in.stop()


@pytest.fixture
def replies() -> list[tuple[Sequence, Reply]]:
    return []


@pytest.fixture
def engine(
    served: VllmStandIn,
    replies: list[tuple[Sequence, Reply]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[VllmEngine]:
    monkeypatch.setattr(client, "_SHORT_SECONDS", 0.2)
    monkeypatch.setattr(vllm_engine, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(vllm_engine, "_SILENT_SECONDS", 0.5)
    folders = AdapterFolders(ArtifactStore(str(tmp_path)), None)
    engine = VllmEngine(partial(VllmClient, served.url, None), replies.extend, folders, lambda: None)
    thread = threading.Thread(target=engine.run)
    thread.start()
    wait_for(lambda: engine.state.bases, "what vLLM serves")
    yield engine
    engine.stop(0)
    thread.join()


def test_an_answer_without_a_token_fails_once_vllm_is_silent_and_one_that_has_begun_later(
    engine: VllmEngine,
    served: VllmStandIn,
    replies: list[tuple[Sequence, Reply]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failure(sequence: Sequence) -> Failed | None:
        found = (reply for one, reply in replies if one is sequence)
        return next((reply for reply in found if isinstance(reply, Failed)), None)

    begun, waiting = make_sequence(), make_sequence()
    served.answers["base"] = [1]
    engine.submit(begun)
    wait_for(lambda: any(isinstance(reply, Delta) for _, reply in replies), "the first token")
    served.answers["base"] = []
    engine.submit(waiting)
    wait_for(lambda: len(served.requests) == 2, "the second request")
    served.is_silent = True

    found = wait_for(lambda: failure(waiting), "the end of the request that waits")
    assert found is not None
    assert found.code == "vllm_unreachable"
    assert failure(begun) is None
    monkeypatch.setattr(vllm_engine, "_BEGUN_SILENT_SECONDS", 0.0)
    wait_for(lambda: failure(begun), "the end of the other one")
