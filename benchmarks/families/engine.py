"""The worker's engine process, forked from a process that has imported everything, and requests to it."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.core.engine.messages import Failed, Finished, GenerateRequest, ServingPath, TokenDelta, reply_adapter
from worker.inference import server
from worker.preflight.background_process import BackgroundProcess
from worker.processes.child import ParentLink
from worker.processes.reports import EngineRequest, Listening

_TOKEN = "families"
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class MadeAnswer:
    """The tokens of an answer, the log-probability of each, and which code of the engine made it."""

    token_ids: list[int]
    logprobs: list[float]
    path: ServingPath


class EngineRefused(Exception):
    """The engine replied with an error, or not at all; the message is its own."""


@dataclass(frozen=True)
class RunningEngine:
    """A client of the engine process."""

    http: httpx.Client

    def generate(self, request: GenerateRequest) -> MadeAnswer:
        """The answer to a request. Raises EngineRefused."""
        try:
            reply = self.http.post("/generate", content=request.model_dump_json())
        except httpx.HTTPError as error:
            raise EngineRefused(f"The engine process ended or hangs: {type(error).__name__}") from error
        lines = [reply_adapter.validate_json(line) for line in reply.text.splitlines()]
        if not lines or not isinstance(lines[-1], Finished):
            last = lines[-1] if lines else None
            raise EngineRefused(last.message if isinstance(last, Failed) else "The engine sent no reply.")
        tokens = [token for line in lines if isinstance(line, TokenDelta) for token in line.tokens or []]
        return MadeAnswer(
            [token.token_id for token in tokens],
            [token.logprob for token in tokens],
            lines[-1].timings.path,
        )


@contextmanager
def running_engine(models_folder: Path, artifacts: Path, log: Path) -> Iterator[RunningEngine]:
    """An engine in a forked process; it ends with this context, or with this process."""
    request = EngineRequest(
        host="127.0.0.1",
        port=0,
        token=_TOKEN,
        models_folder=models_folder,
        artifacts_url=str(artifacts),
        cache_folder=artifacts / "cache",
        max_rows=2,
        adapter_slots=2,
    )
    input_read, input_write = os.pipe()
    report_read, report_write = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(input_read, report_write, (input_write, report_read), log)
    )
    process.start()
    os.close(input_read)
    os.close(report_write)
    with os.fdopen(input_write, "w") as requests, os.fdopen(report_read) as reports:
        requests.write(request.model_dump_json() + "\n")
        requests.flush()
        try:
            port = Listening.model_validate_json(reports.readline()).port
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {_TOKEN}"},
                timeout=_TIMEOUT_SECONDS,
            ) as http:
                yield RunningEngine(http)
        finally:
            process.kill()
            process.join()
            with suppress(OSError):
                requests.flush()


def _serve(input_fd: int, report_fd: int, others: tuple[int, int], log: Path) -> None:
    """Run the engine with the pipes that the worker gives it."""
    for fd in others:
        os.close(fd)
    os.dup2(input_fd, 0)
    redirect_output(log)
    link = ParentLink(report_fd)
    os._exit(server.run(link, link.read_request(EngineRequest), BackgroundProcess()))


def redirect_output(log: Path) -> None:
    """Write the output of this process, of its libraries and its children, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
