"""Streams answers of `POST /generate`, and the options that sample them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import typer
from httpx_sse import EventSource

from app.cli.connection.client import Client, failure_from
from app.cli.failures import CommandFailed, ExitCode
from app.cli.output import write_thought

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Max new tokens: the longest that an answer may get.")]
Temperature = Annotated[float | None, typer.Option(min=0, help="0: always the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens that make up this share.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed makes the same answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")]
System = Annotated[str | None, typer.Option(help="System message.")]


def sampling(
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    *,
    seed: int | None,
    stop: list[str] | None,
) -> dict[str, Any]:
    """The sampling parameters of a request; those not given are left to the API's defaults."""
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
    }
    return {name: value for name, value in given.items() if value is not None}


@dataclass
class StreamedCall:
    """A function that an answer calls; `arguments` is JSON."""

    name: str
    arguments: str = ""


@dataclass
class StreamedAnswer:
    """An answer in pieces, and its calls by their numbers, complete once there are no more pieces.

    `end` is the content of the event `done`, empty until it has arrived.
    """

    pieces: Iterator[str]
    end: dict[str, Any] = field(default_factory=dict)
    calls: dict[int, StreamedCall] = field(default_factory=dict)

    def add_call(self, content: Mapping[str, Any]) -> None:
        """Add what an event says of a call."""
        number = content["call"]
        if content.get("withdrawn"):
            self.calls.pop(number, None)
            return
        call = self.calls.setdefault(number, StreamedCall(content.get("name", "")))
        call.arguments += content["arguments"]


@contextmanager
def stream_answer(
    client: Client, body: dict[str, Any], *, on_thought: Callable[[str], None] = write_thought
) -> Iterator[StreamedAnswer]:
    """Request an answer and read it in pieces. Leaving the context cancels it. Raises CommandFailed.

    `on_thought` is called with each piece of what the model thinks before the answer.
    """
    try:
        with client.stream("POST", "/generate", body={**body, "stream": True}) as response:
            answer = StreamedAnswer(iter(()))
            answer.pieces = _pieces(client, response, answer, on_thought)
            yield answer
    except httpx.TransportError as error:
        raise client.unreachable(error) from None


def _pieces(
    client: Client, response: httpx.Response, answer: StreamedAnswer, on_thought: Callable[[str], None]
) -> Iterator[str]:
    is_thinking = False
    for message in EventSource(response).iter_sse():
        content = message.json() if message.data else {}  # a keep-alive comment comes as an empty message
        match message.event:
            case "reasoning":
                is_thinking = True
                on_thought(content["text"])
            case "delta" if content:
                if is_thinking:
                    on_thought("\n\n")
                is_thinking = False
                yield content["text"]
            case "tool_call":
                answer.add_call(content)
            case "error":
                raise failure_from(content["error"])
            case "done":
                answer.end = content
    if is_thinking:
        on_thought("\n")
    if not answer.end:
        raise CommandFailed(
            f"{client.url} broke the answer off.",
            exit_code=ExitCode.UNREACHABLE,
            code="answer_broken_off",
            hint="Ask again; the API's log may say why.",
        )
