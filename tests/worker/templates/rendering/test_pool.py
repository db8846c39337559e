"""Chat templates of strangers end within their limits, and do not hold up others. Real processes."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from app.core.errors import QueueFull
from app.core.errors.jobs import TemplateExceedsLimits
from tests.waiting import wait_for
from tests.worker.templates.rendering.templates import (
    ENDLESS,
    ENDLESS_CONSTANT,
    ENDLESS_FOR_WORD,
    HUGE_CONSTANT,
    HUGE_VALUE,
    LONG_TEXT,
    PLAIN,
    WORD,
)
from worker.templates.rendering import pool as pool_module
from worker.templates.rendering.pool import RenderPool
from worker.templates.rendering.process import RenderLimits, RenderProcess, Span, TemplateRefused

LIMITS = RenderLimits(cpu_seconds=0.4, memory_bytes=64 << 20, characters=1 << 20)
VARIABLES = {"bos_token": "<s>", "add_generation_prompt": True}


@pytest.fixture(scope="module")
def pool() -> Iterator[RenderPool]:
    pool = RenderPool(LIMITS)
    yield pool
    pool.close()


def ask(pool: RenderPool, template: str, content: str = "Hello") -> str:
    text, _spans = pool.render(template, [{"role": "user", "content": content}], VARIABLES)
    return text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "more than 0.4 seconds"),
        (ENDLESS_CONSTANT, "more than 0.4 seconds"),
        (HUGE_CONSTANT, "more than 64 MiB of memory"),
        (HUGE_VALUE, "more than 64 MiB of memory"),
        (LONG_TEXT, "more than 1,048,576 characters"),
    ],
)
def test_a_template_is_ended_at_its_limits_and_the_next_conversation_is_rendered(
    pool: RenderPool, template: str, reason: str
) -> None:
    with pytest.raises(TemplateExceedsLimits, match=reason):
        ask(pool, template)

    assert ask(pool, PLAIN) == "<user>Hello<assistant>"


def test_one_conversation_is_refused_and_others_with_the_same_template_are_rendered(
    pool: RenderPool,
) -> None:
    for _ in range(2):
        with pytest.raises(TemplateExceedsLimits):
            ask(pool, ENDLESS_FOR_WORD, WORD)
        assert ask(pool, ENDLESS_FOR_WORD, "tea") == "<user>tea<assistant>"


def test_text_arrives_unchanged(pool: RenderPool) -> None:
    for content in ("é 🎉 \u2028 \x00", "half of an emoji: \ud83c", ""):
        assert ask(pool, PLAIN, content) == f"<user>{content}<assistant>"


def test_an_error_of_a_template_says_what_it_raised(pool: RenderPool) -> None:
    with pytest.raises(TemplateRefused, match=r"^no system turn, please$"):
        ask(pool, "{{ raise_exception('no system turn, please') }}")
    with pytest.raises(TemplateRefused, match="recursion"):
        ask(pool, "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}")


def test_markers_give_the_spans_that_they_enclose(pool: RenderPool) -> None:
    template = "A{% generation %}{{ messages[0].content }}{% endgeneration %}Z"

    assert pool.render(template, [{"role": "user", "content": "hey"}], {}, marks_answers=True) == (
        "AheyZ",
        [(1, 4)],
    )


def test_the_date_of_the_day_is_that_of_this_process(pool: RenderPool) -> None:
    before = datetime.now().strftime("%Y-%m-%d %H:%M")
    printed = ask(pool, "{{ strftime_now('%Y-%m-%d %H:%M') }}")

    assert before <= printed <= datetime.now().strftime("%Y-%m-%d %H:%M")


def test_a_template_reads_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    pool = RenderPool(LIMITS)
    process = pool._idle[0]
    ask(pool, PLAIN)

    assert process._process is not None
    with open(f"/proc/{process._process.pid}/environ", "rb") as environment:
        assert b"secret" not in environment.read()
    pool.close()


def test_a_process_that_was_killed_is_replaced() -> None:
    pool = RenderPool(LIMITS)
    ask(pool, PLAIN)
    process = pool._idle[-1]._process
    assert process is not None
    process.kill()
    process.wait()

    assert ask(pool, PLAIN) == "<user>Hello<assistant>"
    pool.close()


def test_all_conversations_of_one_work_have_a_limit_together() -> None:
    pool = RenderPool(LIMITS)
    with pool.limit_total(1e-9), pytest.raises(TemplateExceedsLimits, match="so many conversations"):
        ask(pool, PLAIN)

    assert ask(pool, PLAIN) == "<user>Hello<assistant>"
    pool.close()


def test_many_conversations_that_never_end_leave_a_process_to_others(pool: RenderPool) -> None:
    """All end with an error, each with its own text, while other templates are rendered."""
    began = threading.Barrier(17)

    def ask_endless(number: int) -> type[Exception]:
        began.wait()
        try:
            ask(pool, ENDLESS_FOR_WORD, f"{WORD} {number}")
        except (TemplateExceedsLimits, QueueFull) as error:
            return type(error)
        raise AssertionError("it was rendered")

    with ThreadPoolExecutor(16) as threads:
        endless = [threads.submit(ask_endless, number) for number in range(16)]
        began.wait()
        texts = [ask(pool, PLAIN, str(number)) for number in range(50)]
        ended = [one.result() for one in endless]

    assert len(ended) == 16
    assert texts == [f"<user>{number}<assistant>" for number in range(50)]
    assert TemplateExceedsLimits in ended


class HeldProcess(RenderProcess):
    """Renders when a test lets it, and has used the processor time that the test says."""

    def __init__(self, limits: RenderLimits) -> None:
        super().__init__(limits)
        self.cpu_seconds = 0.0
        self.began, self.may_end, self.was_asked = (threading.Event() for _ in range(3))

    def wait_until_ready(self) -> None:  # type: ignore[override]
        pass

    def render(self, *_args: object, **_options: object) -> tuple[str, list[Span]]:
        self.began.set()
        assert self.may_end.wait(20)
        return "text", []

    def measure_cpu_seconds(self) -> float:
        self.was_asked.set()
        return self.cpu_seconds


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RenderPool, HeldProcess, ThreadPoolExecutor]]:
    """A pool of one process, which has begun a conversation that has lasted too long to wait for."""
    monkeypatch.setattr(pool_module, "_MAX_WAIT_SECONDS", 0.0)
    process = HeldProcess(LIMITS)
    pool = RenderPool(make_process=lambda _limits: process)
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(ask, pool, PLAIN)
        assert process.began.wait(20)
        yield pool, process, threads
        process.may_end.set()
        assert first.result() == "text"


def test_conversations_wait_for_one_that_lasts_long_on_a_busy_machine(
    held: tuple[RenderPool, HeldProcess, ThreadPoolExecutor],
) -> None:
    """Many first requests to an engine that loads its model: none is refused."""
    pool, process, threads = held
    others = [threads.submit(ask, pool, PLAIN, str(number)) for number in range(8)]
    assert process.was_asked.wait(20)

    process.may_end.set()

    assert [other.result() for other in others] == ["text"] * 8


def test_a_conversation_does_not_wait_for_a_template_that_computes_for_long(
    held: tuple[RenderPool, HeldProcess, ThreadPoolExecutor],
) -> None:
    pool, process, threads = held
    process.cpu_seconds = 10.0

    with pytest.raises(QueueFull, match="The chat template is slow"):
        threads.submit(ask, pool, PLAIN).result()


def test_the_processor_time_of_a_rendering_under_way_is_measured() -> None:
    process = RenderProcess(RenderLimits(cpu_seconds=1.0))
    before = process.measure_cpu_seconds()
    with ThreadPoolExecutor(1) as threads:
        rendering = threads.submit(process.render, ENDLESS, [], {}, marks_answers=False)
        wait_for(lambda: process.measure_cpu_seconds() > 0.5, "half a second of processor time")
        with pytest.raises(TemplateExceedsLimits):
            rendering.result()
    process.close()
    assert before == 0
    assert process.measure_cpu_seconds() == 0
