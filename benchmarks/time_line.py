"""When requests pass which stage on the way to their first token, in the API's and the engine's process.

`python -m benchmarks.time_line api` runs the API, `python -m benchmarks.time_line FD` an engine without a
model. Both append a line for each stage that a request passes to the file named by TIME_LINE: the stage and
the machine's clock. The functions that stand for a stage are wrapped here, so that the processes themselves
have no code for it.
"""

import functools
import inspect
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

FILE_VARIABLE = "TIME_LINE"
# In the order in which a request passes them.
STAGES = (
    *("parsed", "authenticated", "validated", "named", "sent to the engine"),
    *("received by the engine", "preprocessing", "preprocessed", "first token made"),
    *("received from the engine", "written"),
)


def read(path: Path) -> dict[str, list[float]]:
    """Returns the times at which requests passed each stage, ascending."""
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        stage, _, at = line.rpartition("\t")
        found[stage].append(float(at))
    return {stage: sorted(found[stage]) for stage in STAGES if stage in found}


def _mark_api() -> None:
    from app.api.generate import answer_events, answers
    from app.api.http import limited_protocol
    from app.api.http.access import limits
    from app.api.openai import chat, completions
    from app.core.engine import client

    file = _open()
    _wrap(file, limited_protocol.LimitedProtocol, "on_message_complete", before="parsed")
    _wrap(file, limits.RequestLimits, "admit", after="authenticated")
    for module in (chat, completions):
        _wrap(file, module, "_plan", before="validated", after="named")
    _wrap(file, client, "_connect", before="sent to the engine")
    _wrap(file, answers.Answers, "begin", after="received from the engine")
    _wrap(file, answer_events.EventStream, "_send", before="written")


def _mark_engine() -> None:
    from benchmarks import relay_engine
    from worker.inference import preprocessing
    from worker.inference.service import Service

    file = _open()
    _wrap(file, Service, "_generate", before="received by the engine")
    _wrap(file, preprocessing.Preprocessor, "prepare", before="preprocessing", after="preprocessed")
    made = relay_engine.SteadyEngine._step

    def step(self: Any, sequence: Any) -> Any:
        if self._left[sequence] == sequence.prompt.sampling.max_new_tokens:
            _write(file, "first token made")
        return made(self, sequence)

    relay_engine.SteadyEngine._step = step  # type: ignore[method-assign]


def _wrap(file: int, owner: Any, name: str, *, before: str = "", after: str = "") -> None:
    """Write a line before a function is called, and one after it has returned."""
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _write(file, before)
        found = function(*args, **kwargs)
        _write(file, after)
        return found

    @functools.wraps(function)
    async def wait(*args: Any, **kwargs: Any) -> Any:
        _write(file, before)
        found = await function(*args, **kwargs)
        _write(file, after)
        return found

    setattr(owner, name, wait if inspect.iscoroutinefunction(function) else call)


def _write(file: int, stage: str) -> None:
    if stage:
        os.write(file, f"{stage}\t{time.perf_counter()}\n".encode())


def _open() -> int:
    return os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def main() -> None:
    """Run one of the two processes."""
    if sys.argv[1] == "api":
        from app.__main__ import cli

        _mark_api()
        sys.argv[1:] = []
        cli(prog_name="python -m app")
    else:
        from benchmarks.preprocessing_engine import make_prepare
        from benchmarks.relay_engine import serve
        from worker.processes.child import ParentLink

        _mark_engine()
        uvloop.run(serve(ParentLink(int(sys.argv[1])), make_prepare))


if __name__ == "__main__":
    main()
