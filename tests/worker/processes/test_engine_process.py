"""The engine process is started again where it has frozen, and left alone where it takes its time."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.core.settings import Settings
from tests.waiting import wait_for
from worker.processes import engine_process
from worker.processes.engine_process import EngineProcess


class Bench:
    """An engine process, and events of its life."""

    def __init__(self, settings: Settings) -> None:
        self.changes = threading.Semaphore(0)
        self.engine = EngineProcess(settings, self.changes.release, module="tests.scripted.engine")

    @property
    def pid(self) -> int | None:
        """The process that listens."""
        return self.engine._child.pid if self.engine._child and self.engine.url else None

    def post(self, path: str, what: str = "") -> None:
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{self.engine.url}{path}", json={"what": what}, timeout=1)


@pytest.fixture
def bench(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(engine_process, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(engine_process, "_HEALTH_SECONDS", 0.5)
    monkeypatch.setattr(engine_process, "_FIRST_RESTART_SECONDS", 0.05)
    bench = Bench(settings.model_copy(update={"engine_stall_seconds": 1.0, "engine_silent_seconds": 1.0}))
    bench.engine.start({})
    wait_for(lambda: bench.pid, "the engine")
    yield bench
    bench.engine.stop()


FREEZES: dict[str, Callable[[Bench, int], None]] = {
    "stopped by a signal": lambda _, pid: os.kill(pid, signal.SIGSTOP),
    "the interpreter's lock is held": lambda bench, _: bench.post("/freeze", "interpreter"),
    "the loop does not move": lambda bench, _: bench.post("/freeze", "loop"),
}


@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES)
def test_a_frozen_engine_is_a_problem_and_is_replaced(
    bench: Bench, freeze: Callable[[Bench, int], None]
) -> None:
    frozen = bench.pid
    assert frozen is not None
    freeze(bench, frozen)

    wait_for(lambda: bench.engine.problem, "the problem")
    assert bench.engine.read_state() is None
    wait_for(lambda: bench.pid not in (frozen, None), "another process")
    wait_for(lambda: bench.engine.read_state() is not None, "an engine that answers")
    assert bench.engine.problem is None


def test_a_silent_engine_is_replaced_before_one_that_only_stalls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.engine._settings, "engine_stall_seconds", 3600.0)
    frozen = bench.pid
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    wait_for(lambda: bench.pid not in (frozen, None), "another process")


def test_an_engine_that_is_silent_while_it_loads_a_base_model_is_left_alone(bench: Bench) -> None:
    before = bench.pid
    assert before is not None
    bench.post("/loading")
    wait_for(lambda: bench.engine._is_loading, "the report of it")
    os.kill(before, signal.SIGSTOP)
    try:
        wait_for(lambda: bench.engine.problem, "the problem")
        wait_for_looks(bench, count=3)
        assert bench.pid == before
    finally:
        os.kill(before, signal.SIGCONT)


def test_a_problem_behind_the_engine_is_shown_and_the_engine_is_left_alone(bench: Bench) -> None:
    before = bench.pid
    bench.post("/fail", "vLLM does not respond")
    wait_for(lambda: bench.engine.problem == "vLLM does not respond", "the problem")
    wait_for_looks(bench, count=40)
    assert bench.pid == before
    bench.post("/fail")
    wait_for(lambda: bench.engine.problem is None, "the end of the problem")


def test_an_engine_that_does_what_may_take_long_is_left_alone(bench: Bench) -> None:
    before = bench.pid
    bench.post("/busy")

    looks = wait_for_looks(bench, count=40)

    assert (bench.pid, bench.engine.problem) == (before, None)
    assert looks >= 40


def wait_for_looks(bench: Bench, count: int) -> int:
    """Wait until the watch has looked so often, which takes longer than the engine may stall."""
    looks = threading.Semaphore(0)
    read_health = bench.engine._read_health

    def look() -> object:
        looks.release()
        return read_health()

    bench.engine._read_health = look  # type: ignore[assignment, method-assign]
    return sum(looks.acquire(timeout=30) for _ in range(count))
