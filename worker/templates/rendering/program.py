"""The program that renders chat templates: `python -m worker.templates.rendering.program FD`.

It reads requests from the socket of that number and writes one reply to each. Imports no torch, so that it
starts in half a second.
"""

import json
import resource
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from worker.models.files.error_text import describe

_KIB = 1024


def main(arguments: Sequence[str]) -> None:
    """Render until the other end closes the socket, or until a template leaves much memory in use.

    A request is `template`, `messages`, `variables` and `marks_answers`, and the limits `cpu_seconds`,
    `memory_bytes` and `characters`. A reply is `text` and `spans`; or `error`, what the template raised; or
    `exceeds`, the name of a limit. `cpu_seconds` is the time it took, and `is_last` whether the
    process ends after it. Before the first one comes a message of its own; it and every reply have
    `total_cpu_seconds`, the processor time of the process so far.
    """
    socket = Connection(int(arguments[1]))
    base_bytes, base_peak = _address_space_bytes(), _peak_bytes()
    socket.send_bytes(json.dumps({"total_cpu_seconds": time.process_time()}).encode())
    while True:
        try:
            request = json.loads(socket.recv_bytes())
        except (EOFError, OSError):
            return
        began_at = time.process_time()
        reply = _render_limited(request, base_bytes)
        reply["total_cpu_seconds"] = time.process_time()
        reply["cpu_seconds"] = reply["total_cpu_seconds"] - began_at
        # jinja2 computes constant expressions once and transformers caches the result, whatever its size.
        reply["is_last"] = _peak_bytes() - base_peak > request["memory_bytes"] // 4
        socket.send_bytes(json.dumps(reply).encode())
        if reply["is_last"]:
            return


def _render_limited(request: dict[str, Any], base_bytes: int) -> dict[str, Any]:
    """Render within the limits on memory and processor time.

    The signal of the timer has no handler: the kernel ends the process, also within one long operation that
    holds the interpreter's lock, as 10 ** 10 ** 8 does.
    """
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (base_bytes + request["memory_bytes"], unlimited))
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
    try:
        return _render(request)
    except MemoryError:
        return {"exceeds": "memory_bytes"}
    except Exception as error:  # a template may raise anything
        return {"error": describe(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))


def _render(request: dict[str, Any]) -> dict[str, Any]:
    marks_answers = request["marks_answers"]
    rendered: Any = render_jinja_template(
        [request["messages"]],
        chat_template=request["template"],
        return_assistant_tokens_mask=marks_answers,
        **request["variables"],
    )
    texts, spans = rendered
    if len(texts[0]) > request["characters"]:
        return {"exceeds": "characters"}
    return {"text": texts[0], "spans": spans[0] if marks_answers else []}


def _address_space_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


if __name__ == "__main__":
    main(sys.argv)
