"""Which engine a request goes to, and when another one loads what many requests wait for."""

from contextlib import ExitStack

import pytest

from app.core.engine.balancing.choice import SUSTAINED_SECONDS, Choice, choose
from app.core.engine.balancing.loads import EngineLoads, Wanted
from app.core.engine.endpoints import EngineEndpoint
from app.core.engine.messages import AdapterRef, BaseModelRef, GenerateRequest
from app.core.engine.state import EngineHealth, EngineState, ServedBase
from app.core.specs.job import QuantizationSpec

ROWS = 8
BASE = BaseModelRef(name="owner/model", quantization=QuantizationSpec())
OTHER = BaseModelRef(name="owner/other", quantization=QuantizationSpec())


class Bench:
    """Engines, and a clock that tests advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loads = EngineLoads(lambda: self.now)
        self.engines: list[EngineEndpoint] = []
        self.running = ExitStack()

    def add(self, *adapters: str, base: BaseModelRef | None = BASE, is_silent: bool = False) -> str:
        held = [base] if base else []
        served = [ServedBase(base_model=one, weight_bits=16, rows=ROWS) for one in held]
        state = EngineState(bases=served, adapters=list(adapters))
        url = f"http://engine-{len(self.engines)}"
        self.engines.append(EngineEndpoint(url, "", state, is_silent=is_silent))
        return url

    def choose(self, adapter: str | None = None, **options: frozenset[str]) -> Choice:
        return choose(self.engines, ask(adapter), self.loads, **options)

    def send(self, adapter: str | None = None) -> str:
        """Send a request that does not end; returns where it went."""
        url = self.choose(adapter).order[0].url
        self.running.enter_context(self.loads.counting(url, Wanted.of(ask(adapter))))
        return url

    def occupy(self, url: str, count: int) -> None:
        for _ in range(count):
            self.running.enter_context(self.loads.counting(url, Wanted(OTHER.key)))


def ask(adapter: str | None) -> GenerateRequest:
    reference = AdapterRef(id=adapter, artifact=f"adapters/{adapter}") if adapter else None
    return GenerateRequest(base_model=BASE, adapter=reference, prompt="Hello")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_requests_for_one_base_are_shared_by_the_engines_that_hold_it(bench: Bench) -> None:
    urls = [bench.add(), bench.add(), bench.add(base=OTHER)]
    sent = [bench.send() for _ in range(400)]
    assert [sent.count(url) for url in urls] == [200, 200, 0]


def test_an_adapter_is_served_where_it_is_on_the_device(bench: Bench) -> None:
    bench.add()
    having = bench.add("one")
    bench.occupy(having, 3)
    assert bench.choose("one").order[0].url == having


def test_an_adapter_on_no_device_goes_to_the_less_busy_engine(bench: Bench) -> None:
    busy, idle = bench.add(), bench.add()
    bench.occupy(busy, 1)
    assert bench.choose("one").order[0].url == idle


def test_requests_follow_the_first_one_that_brings_an_adapter(bench: Bench) -> None:
    bench.add()
    bench.add()
    assert len({bench.send("one") for _ in range(4)}) == 1


def test_two_processes_that_exchange_nothing_choose_alike(bench: Bench) -> None:
    other = Bench()
    for one in (bench, bench, bench, other, other, other):
        one.add()
    chosen = [[one.choose(f"adapter-{n}").order[0].url for n in range(30)] for one in (bench, other)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 3


def test_of_engines_that_have_an_adapter_the_same_one_is_chosen_until_it_is_full(bench: Bench) -> None:
    bench.add("one")
    bench.add("one")
    sent = [bench.send("one") for _ in range(ROWS)]
    assert len(set(sent[:4])) == 1
    assert sorted(sent.count(url) for url in set(sent)) == [4, 4]


def test_an_adapter_that_is_overloaded_for_a_moment_is_not_loaded_twice(bench: Bench) -> None:
    having = bench.add("one")
    bench.add()
    sent = [bench.send("one") for _ in range(20)]
    assert set(sent) == {having}
    assert bench.choose("one").copy_to is None


def test_another_engine_loads_an_adapter_that_requests_queue_for(bench: Bench) -> None:
    bench.add("one")
    other = bench.add()
    for _ in range(10):
        bench.send("one")
    bench.choose("one")
    bench.now += SUSTAINED_SECONDS
    choice = bench.choose("one")
    assert choice.copy_to is not None
    assert choice.copy_to.url == other
    assert choice.order[0].url != other  # not before it has the adapter

    bench.loads.record_use(other, Wanted.of(ask("one")))
    assert bench.choose("one").order[0].url == other


def test_queueing_that_ended_meanwhile_is_not_sustained(bench: Bench) -> None:
    bench.add("one")
    bench.add()
    for _ in range(10):
        bench.send("one")
    bench.choose("one")
    bench.running.close()
    bench.choose("one")
    bench.now += SUSTAINED_SECONDS
    for _ in range(10):
        bench.send("one")
    assert bench.choose("one").copy_to is None


@pytest.mark.parametrize(("base", "is_asked"), [(None, True), (OTHER, False)])
def test_an_idle_engine_loads_a_base_that_requests_queue_for_unless_it_has_the_only_copy_of_another(
    bench: Bench, base: BaseModelRef | None, is_asked: bool
) -> None:
    bench.add()
    bench.add(base=base)
    for _ in range(10):
        bench.send()
    bench.choose()
    bench.now += SUSTAINED_SECONDS
    assert (bench.choose().copy_to is not None) == is_asked


def test_silent_and_suspect_engines_come_last(bench: Bench) -> None:
    silent, suspect, usable = bench.add(is_silent=True), bench.add(), bench.add(base=None)
    order = bench.choose(suspects=frozenset({suspect})).order
    assert order[0].url == usable
    assert {one.url for one in order[1:]} == {silent, suspect}


def test_requests_of_other_processes_count_as_a_probe_found_them(bench: Bench) -> None:
    busy, idle = bench.add(), bench.add()
    bench.loads.record_probe(busy, EngineHealth(running=5, waiting=1))
    assert bench.loads.load(busy) == 6
    assert [bench.send() for _ in range(6)] == [idle] * 6


def test_a_copy_is_asked_for_once(bench: Bench) -> None:
    wanted = Wanted.of(ask("one"))
    assert [bench.loads.begin_copy("http://engine-0", wanted) for _ in range(2)] == [True, False]
    bench.now += 60
    assert bench.loads.begin_copy("http://engine-0", wanted)
