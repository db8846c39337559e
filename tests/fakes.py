"""Fakes that speak the real protocols over real sockets."""

import asyncio
import socket
import threading
from enum import Enum
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.engine import workers
from app.core.engine.messages import Finished, GenerateRequest, Reply, Timings, TokenDelta, Usage
from app.core.engine.state import EngineState
from app.core.engine.workers import WorkerReport
from app.core.storage.database import Database

FINISHED = Finished(
    finish_reason="stop",
    usage=Usage(prompt_tokens=3, completion_tokens=2),
    timings=Timings(queued_seconds=0, first_token_seconds=0.1, total_seconds=0.2, tokens_per_second=10),
)


class ServerThread:
    """An ASGI app on a real socket; connections wait in the backlog until it has started."""

    def __init__(self, app: ASGIApp, *, port: int = 0, **config: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        options = {"log_level": "critical", "interface": "asgi3", "timeout_graceful_shutdown": 3, **config}
        self._server = uvicorn.Server(uvicorn.Config(app, **options))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class Act(Enum):
    """What a fake engine does in place of a reply."""

    HOLD = "send nothing more until the client disconnects"
    BREAK = "close the connection"


class FakeEngine:
    """An engine that responds with `scripts` in turn, then always with `script`, and records its requests."""

    def __init__(self) -> None:
        self.script: list[Reply | Act | str] = [TokenDelta(text="Hel"), TokenDelta(text="lo"), FINISHED]
        self.scripts: list[list[Reply | Act | str]] = []
        self.requests: list[GenerateRequest] = []
        self.tokens: list[str] = []
        # What it has to say at GET /metrics.
        self.metrics = b""
        self.is_holding = threading.Event()
        self.lost_its_client = threading.Event()
        # Released once for each such request.
        self.holding = threading.Semaphore(0)
        self.lost = threading.Semaphore(0)
        self._server = ServerThread(self._answer, lifespan="off")
        self.url = self._server.url

    def register(self, database: Database, state: EngineState | None = None, **fields: Any) -> None:
        report = {"id": "worker-1", "roles": ["train", "serve"], "engine_url": self.url, **fields}
        with database.transaction() as session:
            workers.heartbeat(session, WorkerReport(engine_token="secret", engine_state=state, **report))

    def stop(self) -> None:
        self._server.stop()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/state", "/health"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return await send({"type": "http.response.body", "body": b"{}"})
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return await send({"type": "http.response.body", "body": self.metrics})
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        self.requests.append(GenerateRequest.model_validate_json(body + message["body"]))
        self.tokens.append(dict(scope["headers"])[b"authorization"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for reply in self.scripts.pop(0) if self.scripts else self.script:
            if reply is Act.BREAK:
                return
            if reply is Act.HOLD:
                return await self._hold(receive)
            line = reply if isinstance(reply, str) else reply.model_dump_json()  # type: ignore[union-attr]
            await send({"type": "http.response.body", "body": line.encode() + b"\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _hold(self, receive: Receive) -> None:
        self.is_holding.set()
        self.holding.release()
        async with asyncio.timeout(30):
            while (await receive())["type"] != "http.disconnect":
                pass
        self.lost_its_client.set()
        self.lost.release()
