"""The engine's reply to one request: its headers come with the first line."""

import asyncio
from types import SimpleNamespace

import pytest

from app.core.engine.messages import BaseModelRef, GenerateRequest, TokenDelta
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest
from app.core.specs.job import QuantizationSpec
from worker.inference.batching.prompt import Prompt
from worker.inference.failures import failed
from worker.inference.service import Clients, StreamedReply

REQUEST = GenerateRequest(
    base_model=BaseModelRef(name="model", quantization=QuantizationSpec()),
    prompt="Hello",
    sampling=Sampling(),
)


class ReplyingService:
    """Prepares each request at once, and replies when the test says so."""

    def __init__(self, error: Exception | None = None) -> None:
        self.clients = Clients(asyncio.get_running_loop())
        self.submitted = asyncio.Queue()
        self.engine = SimpleNamespace(submit=self.submitted.put_nowait)
        self._error = error

    async def prepare(self, request: GenerateRequest) -> Prompt:
        if self._error:
            raise self._error
        return Prompt(request.base_model, None, [1], request.sampling, seed=0, end_ids=(), decode=str)


async def connected() -> None:
    await asyncio.Event().wait()


def begin(service: ReplyingService) -> tuple[asyncio.Task, list[str]]:
    """Start a reply; returns it, and the types of the messages that are sent."""
    sent = []

    async def send(message: dict) -> None:
        sent.append(message["type"])

    reply = StreamedReply(REQUEST, service)
    return asyncio.create_task(reply({}, connected, send)), sent


def test_headers_are_sent_with_the_first_line():
    async def ask() -> tuple[list[str], list[str]]:
        service = ReplyingService()
        replying, sent = begin(service)
        sequence = await service.submitted.get()
        before = list(sent)
        service.clients.deliver([(sequence, TokenDelta(text="a")), (sequence, failed(InvalidRequest("b")))])
        await replying
        return before, sent

    before, sent = asyncio.run(ask())

    assert before == []
    assert sent == ["http.response.start", *["http.response.body"] * 2]


@pytest.mark.parametrize("error", [InvalidRequest("no"), ValueError("unexpected")])
def test_an_error_of_preprocessing_is_a_line_after_the_headers(error):
    async def ask() -> list[str]:
        replying, sent = begin(ReplyingService(error))
        await replying
        return sent

    assert asyncio.run(ask()) == ["http.response.start", *["http.response.body"] * 2]
