"""Clients that stream answers over HTTP, all at once, in a process of their own: when did each piece arrive.

`python -m benchmarks.streaming_clients` reads a Load as JSON from its input and writes a list of Answers. The
clock is the machine's, so that times compare with another process's.
"""

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

import uvloop

_END = b"0\r\n\r\n"
_TEXT = b'data: {"id"'


@dataclasses.dataclass
class Load:
    """Bodies to POST to `path`, each over a connection of its own."""

    port: int
    bodies: list[dict[str, Any]]
    path: str = "/v1/completions"


@dataclasses.dataclass
class Answer:
    """When the request went out and when text came; how many tokens it was in the end."""

    sent_at: float
    times: list[float]
    tokens: int

    @property
    def first_seconds(self) -> float:
        """To the first piece of text."""
        return self.times[0] - self.sent_at

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def ask(load: Load) -> list[Answer]:
    """Start the process and wait for its answers. Raises CalledProcessError where a request failed."""
    command = [sys.executable, "-m", "benchmarks.streaming_clients"]
    done = subprocess.run(
        command, input=json.dumps(dataclasses.asdict(load)).encode(), stdout=subprocess.PIPE, check=True
    )
    return [Answer(**one) for one in json.loads(done.stdout)]


async def _ask_all(load: Load) -> list[Answer]:
    connections = [await asyncio.open_connection("127.0.0.1", load.port) for _ in load.bodies]
    return await asyncio.gather(
        *(
            _ask(*connection, load.path, body)
            for connection, body in zip(connections, load.bodies, strict=True)
        )
    )


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]
) -> Answer:
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(streamed).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent_at = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = Answer(sent_at, [], 0)
    pieces = []
    while not (pieces and pieces[-1].endswith(_END)):
        piece = await reader.read(1 << 16)
        if not piece:
            sys.exit(f"The connection broke: {b''.join(pieces)[-500:]!r}")
        if _TEXT in piece:
            answer.times.append(time.perf_counter())
        pieces.append(piece)
    writer.close()
    answer.tokens = _count_tokens(b"".join(pieces))
    return answer


def _count_tokens(answer: bytes) -> int:
    usage = answer.rpartition(b'"completion_tokens":')[2].partition(b",")[0]
    if not answer.startswith(b"HTTP/1.1 200") or not usage.isdigit():
        sys.exit(f"No answer: {answer[:1000]!r} … {answer[-500:]!r}")
    return int(usage)


def main() -> None:
    """Load in, answers out."""
    answers = uvloop.run(_ask_all(Load(**json.load(sys.stdin))))
    json.dump([dataclasses.asdict(one) for one in answers], sys.stdout)


if __name__ == "__main__":
    main()
