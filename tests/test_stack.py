import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from app.core.settings import Settings
from app.core.storage.database import Database
from app.stack import Stack, StackError
from tests.factories import make_job

WORKER = "tests.scripted.stack_worker"


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def stack(settings: Settings, port: int) -> Iterator[Stack]:
    with Stack(port=port, data_dir=settings.data_dir, worker_module=WORKER) as stack:
        yield stack


def test_a_stack_starts_gets_ready_and_stops(stack: Stack, settings: Settings) -> None:
    stack.start()
    stack.wait_until_ready(30)
    assert httpx.get(f"{stack.url}/health").json() == {"status": "ok"}
    children = list(stack._children.values())
    stack.stop()
    assert [child.returncode for child in children] == [0, 0]
    assert "Uvicorn running" in (settings.data_dir / "logs" / "api.log").read_text()


def test_a_worker_that_dies_is_named_with_its_status(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stack._environment, "FAKE_WORKER", "die")
    stack.start()
    with pytest.raises(StackError, match=r"The worker stopped with exit status 3\. Its log: .*worker\.log"):
        stack.wait_until_ready(30)


def test_a_killed_api_is_named_with_its_signal(stack: Stack) -> None:
    stack.start()
    stack._children["API"].kill()
    with pytest.raises(StackError, match="The API stopped with signal SIGKILL"):
        stack.wait()


def test_a_port_that_is_taken_is_refused(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stack = Stack(port=taken.getsockname()[1], data_dir=settings.data_dir)
        with pytest.raises(StackError, match="can't be used"):
            stack.start()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_url_is_one_that_this_machine_reaches(host: str, url: str) -> None:
    assert Stack(host=host).url == url


def test_sigterm_ends_the_api_while_streams_are_open(
    stack: Stack, settings: Settings, database: Database
) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    stack.start()
    url = f"{stack.url}/jobs/{job_id}"
    sse = {"accept": "text/event-stream"}
    with (
        httpx.stream("GET", f"{url}/events", headers=sse, timeout=20) as events,
        httpx.stream("GET", f"{url}/logs", params={"follow": True}, timeout=20) as log,
    ):
        lines, log_lines = events.iter_lines(), log.iter_lines()
        assert next(lines) == "id: 1"
        assert "queued" in next(log_lines)
        stack._children["API"].send_signal(signal.SIGTERM)
        assert len(list(lines)) < 5
        assert list(log_lines) == []
    assert stack._children["API"].wait(5) == 0


UP = f"""
import functools, app.cli.local, app.stack
app.cli.local.Stack = functools.partial(app.stack.Stack, worker_module={WORKER!r})
app.cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tunesmith_up_ends_cleanly(settings: Settings, port: int, number: signal.Signals) -> None:
    up = subprocess.Popen(
        [sys.executable, "-c", UP, "up", "--port", str(port)],
        env={**os.environ, "TUNESMITH_DATA_DIR": str(settings.data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run that a shell has put into the background ignores it, and so would all its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = threading.Timer(180, up.kill)
    deadline.start()
    assert up.stdout
    lines = list(itertools.takewhile(lambda line: line and line != "Ctrl-C stops it.\n", up.stdout))
    up.send_signal(number)
    rest, _ = up.communicate()
    deadline.cancel()
    assert up.returncode == 0, rest
    assert any(f"export TUNESMITH_URL=http://127.0.0.1:{port}" in line for line in lines)
    assert rest.splitlines()[-1] == "Stopped."
