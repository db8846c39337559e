"""Two hundred clients that leave, stall and send garbage, again and again: what is left of it is nothing."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.core.engine.workers import find_alive
from app.core.storage.database import Database
from tests.end_to_end.box import Box, Process
from tests.end_to_end.rude_clients import PATIENT_TOKENS, Rudeness
from tests.factories import make_adapter
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for
from tests.worker.inference.conftest import ADAPTERS, save_adapter
from tests.worker.inference.test_server import LONG, add_long_model

CLIENTS = 200
STORMS = 3
CONTEXT_LENGTH = 8_000
ROWS = 32
# What a process may keep of a storm: allocators give memory back in their own time.
KEPT_BYTES = 8 << 20
BODIES: list[dict[str, Any]] = [
    {"model": model, "prompt": "How do I cancel a job?", "temperature": 0, "logit_bias": {"2": -100}}
    # The adapters first: a base model is asked with the weights that it stands in memory with.
    for model in ("attention", "everything", LONG.name)
]


class Stack(Box):
    """A box with two adapters that no job made."""

    def start(self) -> None:
        self.api = self.start_api()
        data = Path(self.environment["TUNESMITH_DATA_DIR"])
        database = Database(f"sqlite:///{data / 'tunesmith.db'}")
        with database.transaction() as session:
            for number, name in enumerate(("attention", "everything")):
                folder = data / "artifacts" / name
                save_adapter(
                    Path(self.environment["TUNESMITH_MODELS_DIR"]) / LONG.name, folder, **ADAPTERS[name]
                )
                make_adapter(
                    session,
                    id=f"ad_{number:016}",
                    name=name,
                    artifact=name,
                    base_model=LONG.name,
                    quantization={"load_in_4bit": False},
                )
        self.worker = self.start_worker()
        with database.snapshot() as session:
            (worker,) = find_alive(session, lease_seconds=60, role="serve")
        self.engine_url = worker.engine_url
        database.close()

    def answers(self) -> list[str]:
        """A greedy one of each model."""
        bodies = [{**body, "max_tokens": 40} for body in BODIES]
        found = [self.get_good(self.client.post("/v1/completions", json=body)) for body in bodies]
        return [answer["choices"][0]["text"] for answer in found]

    def fill_the_cache(self) -> None:
        """Touch every page of the engine's KV cache: the system gives it memory page by page.

        Every row has an answer at the same time that may become as long as the context allows.
        """

        async def hold(client: httpx.AsyncClient, all_begun: asyncio.Barrier) -> None:
            body = {**BODIES[0], "max_tokens": CONTEXT_LENGTH - 100, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                assert (await anext(lines)).startswith("data: {")
                await all_begun.wait()

        async def hold_all() -> None:
            all_begun = asyncio.Barrier(ROWS)
            limits = httpx.Limits(max_connections=ROWS)
            async with httpx.AsyncClient(base_url=self.client.base_url, limits=limits, timeout=120) as client:
                await asyncio.gather(*(hold(client, all_begun) for _ in range(ROWS)))

        asyncio.run(hold_all())

    def wait_until_idle(self) -> None:
        """Until no sequence runs or waits."""
        busy = {"running": 0, "waiting": 0}
        wait_for(
            lambda: busy.items() <= httpx.get(f"{self.engine_url}/health").json().items(), "an idle engine"
        )

    def resident_bytes(self) -> dict[str, int]:
        """Memory of the API and of the engine."""
        engine = self.child(self.worker, "worker.inference.server")
        assert engine is not None
        api: Process = self.api
        return {"api": psutil.Process(api.pid).memory_info().rss, "engine": engine.memory_info().rss}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    make_tiny_model(tmp_path / "models")
    add_long_model(tmp_path / "models", CONTEXT_LENGTH)
    stack = Stack(tmp_path, tmp_path / "models", engine_max_rows=str(ROWS))
    stack.start()
    yield stack
    stack.close()


def test_after_storms_of_rude_clients_everything_is_as_before(stack: Stack) -> None:
    before = stack.answers()
    assert len(set(before)) == len(BODIES)
    stack.fill_the_cache()
    memory = []
    for seed in range(STORMS):
        storm = Rudeness(stack.port, BODIES, seed)
        asyncio.run(storm.run(CLIENTS))
        stack.wait_until_idle()
        assert {_tokens(answer) for answer in storm.slow_answers} == {PATIENT_TOKENS}
        assert stack.answers() == before
        memory.append(stack.resident_bytes())
    # The first storms make threads, buffers and caches that the later ones use again.
    for process in ("api", "engine"):
        assert memory[-1][process] < memory[-2][process] + KEPT_BYTES, memory
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(lambda _: stack.answers()[0], range(64))) == before[:1] * 64
    assert "Traceback" not in stack.log()


def _tokens(answer: bytes) -> int:
    """How many tokens a streamed answer has that came to its end."""
    assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
    assert b"data: [DONE]" in answer, answer[-500:]
    events = [line.removeprefix(b"data: ") for line in answer.splitlines() if line.startswith(b"data: {")]
    return int(json.loads(events[-1])["usage"]["completion_tokens"])
