"""Clients in a process of their own that stream answers over HTTP, all at once, and time the text.

`python -m benchmarks.streaming_clients` reads a Load as JSON from its input and writes a list of Answers. The
clock is the machine's, so that times compare with another process's.
"""

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
import time
from typing import Any

import uvloop

_END = b"0\r\n\r\n"
_TEXT = b'data: {"id"'
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclasses.dataclass
class Load:
    """Bodies to POST to `path`, each over a connection of its own.

    `may_be_refused`: a refusal is an answer without text and without tokens; else it ends the process.
    """

    port: int
    bodies: list[dict[str, Any]]
    path: str = "/v1/completions"
    may_be_refused: bool = False


@dataclasses.dataclass
class Answer:
    """When the request was sent and when text arrived (seconds), and the number of tokens of the answer."""

    sent_at: float
    times: list[float]
    tokens: int

    @property
    def first_seconds(self) -> float:
        """Seconds to the first chunk of text."""
        return self.times[0] - self.sent_at

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks of text."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def send(load: Load) -> list[Answer]:
    """Send all requests from a new process and return the answers. Raises CalledProcessError."""
    command = [sys.executable, "-m", "benchmarks.streaming_clients"]
    done = subprocess.run(
        command, input=json.dumps(dataclasses.asdict(load)).encode(), stdout=subprocess.PIPE, check=True
    )
    return [Answer(**one) for one in json.loads(done.stdout)]


async def _send_all(load: Load) -> list[Answer]:
    connections = [await asyncio.open_connection("127.0.0.1", load.port) for _ in load.bodies]
    return await asyncio.gather(
        *(_send(*connection, load, body) for connection, body in zip(connections, load.bodies, strict=True))
    )


async def _send(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, load: Load, body: dict[str, Any]
) -> Answer:
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(streamed).encode()
    head = f"POST {load.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent_at = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = Answer(sent_at, [], 0)
    chunks = []
    while not (chunks and chunks[-1].endswith(_END)):
        chunk = await reader.read(1 << 16)
        if load.may_be_refused and not chunks and chunk.startswith(b"HTTP/1.1 4"):
            writer.close()
            return answer
        if not chunk:
            sys.exit(f"The connection broke: {b''.join(chunks)[-500:]!r}")
        if _TEXT in chunk:
            answer.times.append(time.perf_counter())
        chunks.append(chunk)
    writer.close()
    whole = b"".join(chunks)
    if load.may_be_refused and not _USAGE.search(whole):
        return Answer(sent_at, [], 0)
    answer.tokens = _count_tokens(whole)
    return answer


def _count_tokens(answer: bytes) -> int:
    usages = _USAGE.findall(answer)
    if not answer.startswith(b"HTTP/1.1 200") or not usages:
        sys.exit(f"No answer: {answer[:1000]!r} … {answer[-500:]!r}")
    return int(usages[-1])


def main() -> None:
    """Read a Load from the input, write the answers to the output."""
    answers = uvloop.run(_send_all(Load(**json.load(sys.stdin))))
    json.dump([dataclasses.asdict(one) for one in answers], sys.stdout)


if __name__ == "__main__":
    main()
