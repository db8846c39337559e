"""How long the engine's loop has been silent, and how long it may be in each phase."""

import pytest

from tests.worker.inference.engine.bench import Bench
from tests.worker.inference.fakes import FakeRunner


@pytest.fixture
def bench():
    return Bench()


def test_health_is_silent_until_the_loop_has_stepped(bench):
    assert bench.engine.health().silent_seconds == 0
    bench.now = 8.0
    assert (bench.engine.health().silent_seconds, bench.engine.health().is_moving) == (8, True)
    bench.now = 11.0
    assert not bench.engine.health().is_moving

    bench.engine.step()

    assert bench.engine.health().silent_seconds == 0


class AskingRunner(FakeRunner):
    """Records the health of its engine while it works."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.limits: dict[str, list[float]] = {}

    def load_adapter(self, slot, adapter):
        self._ask("adapter")
        super().load_adapter(slot, adapter)

    def decode(self, running):
        self._ask("decode")
        return super().decode(running)

    def close(self):
        self._ask("close")
        super().close()

    def _ask(self, what: str) -> None:
        self.limits.setdefault(what, []).append(self.bench.engine.health().limit_seconds)


def test_what_may_take_long_has_limits_of_its_own(bench):
    bench.runner = runner = AskingRunner(bench)
    bench.finish(bench.submit(adapter="x", max_new_tokens=6))
    bench.engine.pause("job_1")
    bench.engine.step()

    assert runner.limits == {"adapter": [300], "decode": [600] * 4 + [10] * 2, "close": [120]}
    assert bench.engine.health().limit_seconds == 10


class SlowRunner(FakeRunner):
    """Lets its engine's clock go on while it works, and records the health at the end of that."""

    def __init__(self, bench: Bench, adapter_seconds: float) -> None:
        super().__init__()
        self.bench = bench
        self.adapter_seconds = adapter_seconds
        self.seen: list[tuple[str, float, bool]] = []

    def load_adapter(self, slot, adapter):
        self._work("adapter", self.adapter_seconds)

    def decode(self, running):
        self._work("decode", 1.0)
        return super().decode(running)

    def _work(self, what: str, seconds: float) -> None:
        self.bench.engine.health()
        self.bench.now += seconds
        health = self.bench.engine.health()
        self.seen.append((what, health.silent_seconds, health.is_moving))


def test_a_long_phase_within_its_limit_does_not_count_against_the_next_one(bench):
    bench.runner = runner = SlowRunner(bench, adapter_seconds=0)
    # The speed is known, and a step has a short limit, once some were made.
    bench.finish(bench.submit(max_new_tokens=6))
    runner.seen.clear()
    runner.adapter_seconds = 40.0

    bench.finish(bench.submit(adapter="x", max_new_tokens=1))

    assert runner.seen == [("adapter", 40, True), ("decode", 1, True)]


def test_after_a_long_phase_the_loop_has_its_time_for_what_comes_between(bench):
    bench.runner = SlowRunner(bench, adapter_seconds=40.0)
    start_next, silences = bench.scheduler.start_next, []

    def ask_and_start():
        silences.append(bench.engine.health().silent_seconds)
        return start_next()

    bench.scheduler.start_next = ask_and_start
    bench.finish(bench.submit(adapter="x", max_new_tokens=1))

    assert bench.now > 40
    assert set(silences) == {0}
