"""Bursts of 200 clients that disconnect, stall and send garbage leave answers and memory unchanged."""

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
from tests.end_to_end.misbehaving_clients import SLOW_READER_TOKENS, MisbehavingClients
from tests.factories import make_adapter
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for
from tests.worker.inference.conftest import ADAPTERS, save_adapter
from tests.worker.inference.test_server import LONG, add_long_model
from worker.processes.engine_process import ENGINE_MODULE

pytestmark = pytest.mark.slow

CLIENTS = 200
BURSTS = 3
CONTEXT_LENGTH = 8_000
ROWS = 32
# The memory that a process may gain in a burst: allocators return memory late.
MAX_GROWTH_BYTES = 8 << 20
BODIES: list[dict[str, Any]] = [
    {"model": model, "prompt": "How do I cancel a job?", "temperature": 0, "logit_bias": {"2": -100}}
    # The adapters first: they load the base model with their quantization.
    for model in ("attention", "everything", LONG.name)
]


class Stack(Box):
    """A box with two adapters that no job trained."""

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
        """A greedy answer of each model."""
        bodies = [{**body, "max_tokens": 40} for body in BODIES]
        found = [self.get_good(self.client.post("/v1/completions", json=body)) for body in bodies]
        return [answer["choices"][0]["text"] for answer in found]

    def fill_the_cache(self) -> None:
        """Touch every memory page of the engine's KV cache, which the system allocates on first use.

        Every row generates at the same time an answer that may fill the context.
        """

        async def generate(client: httpx.AsyncClient, all_begun: asyncio.Barrier) -> None:
            body = {**BODIES[0], "max_tokens": CONTEXT_LENGTH - 100, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                assert (await anext(lines)).startswith("data: {")
                await all_begun.wait()

        async def generate_in_all_rows() -> None:
            all_begun = asyncio.Barrier(ROWS)
            limits = httpx.Limits(max_connections=ROWS)
            async with httpx.AsyncClient(base_url=self.client.base_url, limits=limits, timeout=120) as client:
                await asyncio.gather(*(generate(client, all_begun) for _ in range(ROWS)))

        asyncio.run(generate_in_all_rows())

    def wait_until_idle(self) -> None:
        """Wait until no sequence runs or waits."""
        busy = {"running": 0, "waiting": 0}
        wait_for(
            lambda: busy.items() <= httpx.get(f"{self.engine_url}/health").json().items(), "an idle engine"
        )

    def resident_bytes(self) -> dict[str, int]:
        """The resident memory of the API and of the engine."""
        engine = self.child(self.worker, ENGINE_MODULE)
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


def test_bursts_of_misbehaving_clients_change_neither_answers_nor_memory(stack: Stack) -> None:
    before = stack.answers()
    assert len(set(before)) == len(BODIES)
    stack.fill_the_cache()
    memory = []
    for seed in range(BURSTS):
        clients = MisbehavingClients(stack.port, BODIES, seed)
        asyncio.run(clients.run(CLIENTS))
        stack.wait_until_idle()
        assert {_tokens(answer) for answer in clients.slow_answers} == {SLOW_READER_TOKENS}
        assert stack.answers() == before
        memory.append(stack.resident_bytes())
    # The first bursts allocate threads, buffers and caches that later ones reuse.
    for process in ("api", "engine"):
        assert memory[-1][process] < memory[-2][process] + MAX_GROWTH_BYTES, memory
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(lambda _: stack.answers()[0], range(64))) == before[:1] * 64
    assert "Traceback" not in stack.log()


def _tokens(answer: bytes) -> int:
    """The number of tokens of a complete streamed answer."""
    assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
    assert b"data: [DONE]" in answer, answer[-500:]
    events = [line.removeprefix(b"data: ") for line in answer.splitlines() if line.startswith(b"data: {")]
    return int(json.loads(events[-1])["usage"]["completion_tokens"])
