"""A receiver of webhooks on a real socket, which may stall, fail or redirect."""

import queue
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from tests.fakes import ServerThread


@dataclass
class Received:
    """One received request."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Answer:
    """The receiver's response: a status, headers and a body; or none, until the client disconnects."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body_bytes: int = 0
    stalls: bool = False


class WebhookReceiver:
    """Responds with `answers` in turn, then always with 204, and records the requests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.received: queue.Queue[Received] = queue.Queue()
        self._server = ServerThread(self._answer, lifespan="off")
        self.url = self._server.url

    def take(self) -> Received:
        """Wait for the next request and return it."""
        return self.received.get(timeout=20)

    def stop(self) -> None:
        self._server.stop()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        answer = self.answers.pop(0) if self.answers else Answer()
        self.received.put(Received(scope["path"], headers, (body + message["body"]).decode()))
        if answer.stalls:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        sent = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        for _ in range(answer.body_bytes >> 16):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
