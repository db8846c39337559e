"""Chat templates of strangers end within their limits, and do not hold up others. Real processes."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from app.core.errors import QueueFull
from app.core.errors.jobs import TemplateExceedsLimits
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
from worker.templates.rendering.pool import RenderPool
from worker.templates.rendering.process import RenderLimits, TemplateRefused

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
