"""Dates in chat templates: those of a given moment, equal to what transformers prints at that moment."""

from datetime import UTC, datetime, timedelta

import pytest
from transformers.utils import chat_template_utils

from app.core.datasets.rows import Message
from tests.worker.families import make_tokenizer
from tests.worker.templates.test_families import ONE_EXCHANGE, TWO_EXCHANGES, published
from worker.templates.renderer import render
from worker.templates.rendering import text

MOMENT = datetime(2026, 3, 5, 4, 7, 9, tzinfo=UTC)
# As in Granite's template and in Mistral's, which reckon with parts of the date.
IN_WORDS = "{{ \"Today's Date: \" + strftime_now('%B %d, %Y') + '.' }}"
IN_PARTS = (
    "{% set year = strftime_now('%Y')|int %}{% set day = strftime_now('%-d') %}{{ year - 1 }}, {{ day }}"
)
IN_A_MACRO = "{% macro header() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ header() }}"
GUARDED = "\n\n  {% if strftime_now is defined %}{{ strftime_now('%A %j') }}{% endif %}\n"
ODD = "{{ strftime_now('100%% %Q %d%m %I%p %Z%z %') }}{{ strftime_now('') }}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type["FakeClock"]:
    """The clock that transformers reads, in this process."""
    monkeypatch.setattr(text, "is_known", lambda template: True)
    monkeypatch.setattr(chat_template_utils, "datetime", FakeClock)
    FakeClock.present = MOMENT
    return FakeClock


class FakeClock(datetime):
    """A datetime whose present is set."""

    present: datetime

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return cls.present


TEMPLATES = [published(name) for name in ("llama3_2", "gptoss", "muse_glimmer", "llama3_1")]


@pytest.mark.parametrize("template", [*TEMPLATES, IN_WORDS, IN_PARTS, IN_A_MACRO, GUARDED, ODD])
def test_a_moment_is_rendered_as_transformers_renders_it_at_that_moment(
    template: str, clock: type[FakeClock]
) -> None:
    tokenizer = make_tokenizer("llama3", template=template)
    then = render(tokenizer, TWO_EXCHANGES, add_generation_prompt=False)

    clock.present = MOMENT + timedelta(days=400)
    later = render(tokenizer, TWO_EXCHANGES, add_generation_prompt=False, moment=MOMENT)

    assert later == then
    if "strftime_now" in template:
        assert render(tokenizer, TWO_EXCHANGES, add_generation_prompt=False) != then


def test_serving_prints_the_date_of_the_day(clock: type[FakeClock]) -> None:
    tokenizer = make_tokenizer("llama3", template=published("llama3_2"))

    assert "Today Date: 05 Mar 2026" in render(tokenizer, ONE_EXCHANGE[:1], add_generation_prompt=True)
    clock.present += timedelta(days=1)
    assert "Today Date: 06 Mar 2026" in render(tokenizer, ONE_EXCHANGE[:1], add_generation_prompt=True)


def test_a_moment_names_no_date_of_the_worker_or_its_time_zone() -> None:
    tokenizer = make_tokenizer("llama3", template="{{ strftime_now('%Y-%m-%d %H:%M %Z') }}")

    assert render(tokenizer, [Message("user", "")], add_generation_prompt=True, moment=MOMENT) == (
        "2026-03-05 04:07 UTC"
    )
