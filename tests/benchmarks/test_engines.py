"""The clients of `benchmarks.engines`, and what is left of its report when one fails."""

import argparse
import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from benchmarks import engines
from tests.fakes import ServerThread


def row(count: int, speed: float) -> dict[str, Any]:
    return {"through": "API", "engines": count, "requests_per_second": speed}


def test_a_failed_run_loses_no_earlier_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_RESULTS", tmp_path)

    def measured() -> Iterator[dict[str, Any]]:
        yield row(1, 10.0)
        yield row(2, 19.0)
        raise engines.ClientFailed("gone")

    with pytest.raises(engines.ClientFailed):
        engines._record_each(argparse.Namespace(machine="here"), measured())
    report = json.loads((tmp_path / "engines-here.json").read_text())
    assert report["rows"] == [row(1, 10.0), row(2, 19.0)]
    assert report["times_one_engine"] == {"API": {"1": 1.0, "2": 1.9}}


def test_a_connection_that_closes_without_a_response_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_first() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.close()

        closing = threading.Thread(target=close_first)
        closing.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/generate"
        with pytest.raises(engines.ClientFailed, match=rf"{url} gives no answer .*Error"):
            asyncio.run(engines._send([engines.Client(url, {}, {"prompt": "Hi"})], seconds=3600))
        closing.join()


def test_each_client_keeps_one_connection() -> None:
    """Hundreds of clients on one of httpx's pools take seconds to agree who has which connection."""
    clients, rounds = 50, 4
    connections: set[tuple[bytes, int]] = set()
    asked = 0

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        while (await receive()).get("more_body"):
            pass
        connections.add((dict(scope["headers"])[b"x-client"], scope["client"][1]))
        asked += 1
        status = 200 if asked <= clients * rounds else 500
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"finish_reason": "length"}'})

    server = ServerThread(application, lifespan="off")
    senders = [engines.Client(server.url, {"x-client": str(number)}, {}) for number in range(clients)]
    try:
        with pytest.raises(engines.ClientFailed, match="does not answer"):
            asyncio.run(engines._send(senders, seconds=3600))
    finally:
        server.stop()
    assert len(connections) == clients
