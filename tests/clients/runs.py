"""Runs of the clients' scripts against a running stack, and what they report."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.clients import CLIENTS, Client
from tests.clients.environments import command, make_node_environment
from tests.clients.model import NAME, make_model
from tests.end_to_end.box import running_box

SCRIPT_SECONDS = 240


@dataclass(frozen=True)
class Outcome:
    """What became of one call; `error`: its traceback, or None."""

    call: str
    error: str | None

    @property
    def column(self) -> str:
        return self.call.partition("_")[0]


Outcomes = dict[str, Future[list[Outcome]]]


@contextmanager
def running_clients(folder: Path) -> Iterator[Outcomes]:
    """Run a stack in `folder`, and the clients' scripts, two at a time. Yields the outcomes by client."""
    with ThreadPoolExecutor(2) as pool:
        node = pool.submit(make_node_environment)
        commands = {client: pool.submit(command, client) for client in CLIENTS}
        models = make_model(folder / "models").parent
        with running_box(folder, models) as box:
            box.start_worker()
            url = str(box.client.base_url.join("/v1"))

            def run(client: Client) -> list[Outcome]:
                node.result()
                return run_script(commands[client].result(), url)

            yield {client.name: pool.submit(run, client) for client in CLIENTS}
            pool.shutdown()


def run_script(command: list[str], url: str) -> list[Outcome]:
    """The outcomes of a script's calls, in their order."""
    with tempfile.TemporaryDirectory() as home:
        # None of the vendors' keys and addresses that the caller's environment may name.
        environment = {"PATH": os.environ["PATH"], "HOME": home, "SERVICE_URL": url, "SERVICE_MODEL": NAME}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SCRIPT_SECONDS
        )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [Outcome(one["call"], one["error"]) for one in found]
