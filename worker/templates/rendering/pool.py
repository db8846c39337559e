"""Renders conversations with chat templates in a few processes with limits. Thread-safe."""

import atexit
import contextlib
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.core.errors import QueueFull
from app.core.errors.jobs import TemplateExceedsLimits
from worker.templates.rendering.process import RenderLimits, RenderProcess, Span

_PROCESSES = 2
_SLOW_SECONDS = 0.5
_MAX_WAIT_SECONDS = 1.0
_CHECK_SECONDS = 0.2
_REMEMBERED = 256


class RenderPool:
    """Renders in two processes, one conversation of a template at a time, so that it does not hold up others.

    All templates that once took long, or exceeded a limit, share one process. A conversation does not wait
    for a slow rendering of the same template that has lasted a second, since those that wait occupy threads.
    Slow is what takes processor time: on a busy machine, as when models are loaded, any template may last a
    second. A conversation that exceeded a limit is refused at once when it is sent again.
    """

    def __init__(
        self,
        limits: RenderLimits | None = None,
        make_process: Callable[[RenderLimits], RenderProcess] = RenderProcess,
    ) -> None:
        self._idle = [make_process(limits or RenderLimits()) for _ in range(_PROCESSES)]
        self._changed = threading.Condition()
        self._slow_templates: OrderedDict[str, None] = OrderedDict()
        self._refusals: OrderedDict[str, TemplateExceedsLimits] = OrderedDict()
        # By template.
        self._running: dict[str, _Rendering] = {}
        self._seconds_left: float | None = None

    def start(self) -> None:
        """Start a process before it is needed."""
        with self._changed:
            self._idle[0].start()

    def render(
        self,
        template: str,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        *,
        marks_answers: bool = False,
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans that `{% generation %}` markers enclose.

        Raises TemplateRefused, TemplateExceedsLimits, QueueFull where others wait for the same slow template,
        and EngineFailed where no process starts.
        """
        with self._turn(template, messages) as process:
            try:
                found = process.render(template, messages, variables, marks_answers=marks_answers)
            except TemplateExceedsLimits as error:
                with self._changed:
                    _remember(self._refusals, _digest(template, messages), error)
                    _remember(self._slow_templates, template, None)
                with contextlib.suppress(OSError):
                    process.start()  # before the next conversation has to wait for it
                raise
            cpu_seconds = process.last_cpu_seconds
        self._spend(cpu_seconds)
        return found

    @contextlib.contextmanager
    def limit_total(self, cpu_seconds: float) -> Iterator[None]:
        """Limit the processor time of all renderings in the block, for a process with one work at a time.

        The rendering that exceeds it raises TemplateExceedsLimits.
        """
        self._seconds_left = cpu_seconds
        try:
            yield
        finally:
            self._seconds_left = None

    def _spend(self, cpu_seconds: float) -> None:
        if self._seconds_left is not None:
            self._seconds_left -= cpu_seconds
            if self._seconds_left < 0:
                raise TemplateExceedsLimits(
                    "The chat template takes too long to render so many conversations.",
                    hint="Use a chat_template that does less, or fewer rows.",
                )

    def close(self) -> None:
        """End the processes that are idle."""
        with self._changed:
            for process in self._idle:
                process.close()

    @contextlib.contextmanager
    def _turn(self, template: str, messages: list[dict[str, Any]]) -> Iterator[RenderProcess]:
        """A process for one rendering, once it is the template's turn."""
        with self._changed:
            self._wait(template, messages)
            process = next((one for one in self._idle if one.is_ready), self._idle[0])
            self._idle.remove(process)
            rendering = self._running[template] = _Rendering(process)
        try:
            process.wait_until_ready()
            rendering.began_at = time.monotonic()
            yield process
        finally:
            with self._changed:
                if process.last_cpu_seconds > _SLOW_SECONDS:
                    _remember(self._slow_templates, template, None)
                self._idle.append(process)
                del self._running[template]
                self._changed.notify_all()

    def _wait(self, template: str, messages: list[dict[str, Any]]) -> None:
        """Wait until a process is idle, and no rendering runs that this one may not run next to."""
        while True:
            is_slow = template in self._slow_templates
            refusal = self._refusals.get(_digest(template, messages)) if is_slow else None
            if refusal is not None:
                raise TemplateExceedsLimits(refusal.message, hint=refusal.hint)
            in_front = [
                rendering
                for other, rendering in self._running.items()
                if other == template or (is_slow and other in self._slow_templates)
            ]
            if self._idle and not in_front:
                return
            if any(rendering.is_slow() for rendering in in_front):
                raise QueueFull(
                    "The chat template is slow, and other conversations are being rendered with it.",
                    hint="Try again in a few seconds.",
                )
            self._changed.wait(_CHECK_SECONDS if in_front else None)


@dataclass
class _Rendering:
    """A rendering under way, and when it began; None while its process starts."""

    process: RenderProcess
    began_at: float | None = None

    def is_slow(self) -> bool:
        """Whether others do not wait for it: it has lasted long, and not because the machine is busy."""
        if self.began_at is None or time.monotonic() - self.began_at < _MAX_WAIT_SECONDS:
            return False
        return self.process.measure_cpu_seconds() > _SLOW_SECONDS


@lru_cache(maxsize=1)
def shared_pool() -> RenderPool:
    """The pool of this process."""
    pool = RenderPool()
    atexit.register(pool.close)
    return pool


def _digest(template: str, messages: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([template, messages]).encode()).hexdigest()


def _remember(found: OrderedDict[str, Any], key: str, value: Any) -> None:
    """Add a key, and forget the oldest one beyond the number that is remembered."""
    found[key] = value
    found.move_to_end(key)
    while len(found) > _REMEMBERED:
        found.popitem(last=False)
