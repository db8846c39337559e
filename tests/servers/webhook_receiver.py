"""A receiver of webhooks on a real socket, which may be slow, broken, or send one elsewhere."""

import queue
import threading
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from tests.fakes import ServerThread


@dataclass
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Answer:
    """What the receiver does: a status, headers, so many bytes; or nothing until it is let go."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body_bytes: int = 0
    holds: bool = False


class WebhookReceiver:
    """Answers with `answers` in turn, then always 204; remembers what came."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.received: queue.Queue[Received] = queue.Queue()
        self.let_go = threading.Event()
        self._server = ServerThread(self._answer, lifespan="off")
        self.url = self._server.url

    def take(self) -> Received:
        """The next request, waited for."""
        return self.received.get(timeout=20)

    def stop(self) -> None:
        self.let_go.set()
        self._server.stop()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        answer = self.answers.pop(0) if self.answers else Answer()
        self.received.put(Received(scope["path"], headers, (body + message["body"]).decode()))
        if answer.holds:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        sent = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        for _ in range(answer.body_bytes >> 16):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
