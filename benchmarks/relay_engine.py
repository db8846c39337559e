"""An engine process without a model: every stream gets a token a step, so many steps a second."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable

import uvicorn
import uvloop

from app.core import garbage
from app.core.engine.messages import Finished, GenerateRequest, Reply, Timings, TokenDelta, Usage
from app.core.engine.state import EngineHealth, EngineState
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.sequence import Sequence
from worker.inference.service import Clients, Prepare, Service
from worker.processes.child import ParentLink
from worker.processes.reports import EngineRequest, Listening

STEPS_PER_SECOND = 94  # times 64 streams: 6,000 tokens a second


class SteadyEngine(threading.Thread):
    """Generates the same word for every stream, at the rate of a fast GPU."""

    def __init__(self, clients: Clients) -> None:
        super().__init__(daemon=True)
        self._clients = clients
        self._left: dict[Sequence, int] = {}
        self._lock = threading.Lock()
        self.state = EngineState()
        self.running_count = self.waiting_count = 0

    def health(self) -> EngineHealth:
        return EngineHealth()

    def submit(self, sequence: Sequence) -> None:
        with self._lock:
            self._left[sequence] = sequence.prompt.sampling.max_new_tokens

    def cancel(self, sequence: Sequence) -> None:
        with self._lock:
            self._left.pop(sequence, None)

    def run(self) -> None:
        next_at = time.monotonic()
        while True:
            next_at = max(next_at + 1 / STEPS_PER_SECOND, time.monotonic())
            time.sleep(max(0, next_at - time.monotonic()))
            with self._lock:
                replies = [reply for sequence in list(self._left) for reply in self._step(sequence)]
            if replies:
                self._clients.deliver(replies)

    def _step(self, sequence: Sequence) -> list[tuple[Sequence, Reply]]:
        self._left[sequence] -= 1
        delta = (sequence, TokenDelta(text=" word"))
        if self._left[sequence]:
            return [delta]
        del self._left[sequence]
        made = sequence.prompt.sampling.max_new_tokens
        timings = Timings(queued_seconds=0, first_token_seconds=0, total_seconds=0, tokens_per_second=0)
        usage = Usage(prompt_tokens=1, completion_tokens=made)
        return [delta, (sequence, Finished(finish_reason="length", usage=usage, timings=timings))]


def _prepare(request: GenerateRequest) -> Prompt:
    return Prompt(request.base_model, None, [1], request.sampling, seed=0, end_ids=(), decode=str)


async def serve(link: ParentLink, make_prepare: Callable[[EngineRequest], Prepare]) -> None:
    """Serve until the process is ended; `make_prepare` returns what makes prompts of requests."""
    clients = Clients(asyncio.get_running_loop())
    engine = SteadyEngine(clients)
    engine.start()
    request = link.read_request(EngineRequest)
    prepare = make_prepare(request)
    service = Service(engine, clients, prepare, token=request.token, max_waiting=request.max_waiting)  # type: ignore[arg-type]
    link.watch(on_stop=lambda: None)
    garbage.exclude_what_is_loaded()
    collecting = asyncio.create_task(garbage.collect_by_the_clock())
    config = uvicorn.Config(service.app(), lifespan="off", log_level="warning", access_log=False)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        link.send(Listening(port=listener.getsockname()[1]))
        await uvicorn.Server(config).serve(sockets=[listener])
    collecting.cancel()


if __name__ == "__main__":
    uvloop.run(serve(ParentLink(int(sys.argv[1])), lambda _request: _prepare))
