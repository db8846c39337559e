"""What is learned of several turns with published templates, and that the prompt is the one of serving."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation, Message
from app.core.errors.jobs import TemplateMismatch
from tests.worker.families import with_controls
from tests.worker.templates.reasoning_templates import TEMPLATES, THOUGHTS
from worker.templates.prompt_check import check_prompts, render_prompt
from worker.templates.token_rows import IGNORED, encode_row, format_rows

MOMENT = datetime(2026, 3, 5, tzinfo=UTC)
SYSTEM = Message("system", "Count well.")
QUESTIONS = (Message("user", "What is 0+1?"), Message("user", "And plus two?"))


def conversation(first: str, last: str, *, weight: int = 1, system: bool = False) -> Conversation:
    answers = (Message("assistant", first, weight), Message("assistant", last))
    turns = [message for pair in zip(QUESTIONS, answers, strict=True) for message in pair]
    return Conversation(tuple([SYSTEM, *turns] if system else turns))


PLAIN = conversation("1", "3")
THINKING = conversation(THOUGHTS[0] + "1", THOUGHTS[1] + "3")


@pytest.fixture(params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    return TEMPLATES[name].tokenizer(name)


def learned(
    row: Conversation, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool = True
) -> list[str]:
    """The learned text, a string for each run of learned tokens."""
    encoded = encode_row(row, tokenizer, assistant_only=assistant_only, moment=MOMENT)
    input_ids, labels = encoded.input_ids, encoded.labels
    assert all(label in (token, IGNORED) for token, label in zip(input_ids, labels, strict=True))
    runs: list[list[int]] = [[]]
    for label in labels:
        runs[-1].append(label) if label != IGNORED else runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_answers_and_their_ends_are_learned_and_nothing_else(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    first, last = TEMPLATES[name].answers

    assert learned(PLAIN, tokenizer) == [first.format("1"), last.format("3")]


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.has_system])
def test_a_system_message_changes_nothing_of_it(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    first, last = TEMPLATES[name].answers
    row = conversation("1", "3", system=True)

    assert learned(row, tokenizer) == [first.format("1"), last.format("3")]
    input_ids = encode_row(row, tokenizer, assistant_only=True).input_ids
    assert SYSTEM.content in tokenizer.decode(input_ids)


def test_thoughts_are_learned_where_the_template_renders_them(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    thoughts = TEMPLATES[name].thoughts
    if thoughts is None:
        for assistant_only in (False, True):
            with pytest.raises(TemplateMismatch, match=r"the whole: .*Add two") as caught:
                learned(THINKING, tokenizer, assistant_only=assistant_only)
            assert "Leave thoughts out" in (caught.value.hint or "")
    else:
        assert learned(THINKING, tokenizer) == [thoughts[0].format("1"), thoughts[1].format("3")]


@pytest.mark.parametrize("assistant_only", [False, True])
def test_a_turn_of_weight_0_is_not_learned(
    name: str, tokenizer: PreTrainedTokenizerBase, assistant_only: bool
) -> None:
    first, last = TEMPLATES[name].answers

    found = learned(conversation("1", "3", weight=0), tokenizer, assistant_only=assistant_only)

    if assistant_only:
        assert found == [last.format("3")]
    else:
        whole = "".join(learned(PLAIN, tokenizer, assistant_only=False))
        before, after = found
        assert whole == before + first.format("1") + after


def test_the_last_turn_may_have_weight_0(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    first, _last = TEMPLATES[name].answers
    *others, last = PLAIN.messages

    found = learned(Conversation((*others, replace(last, weight=0))), tokenizer)

    assert found == [first.format("1")]


@pytest.mark.parametrize("assistant_only", [False, True])
def test_the_prompt_is_the_one_that_serving_renders(
    name: str, tokenizer: PreTrainedTokenizerBase, assistant_only: bool
) -> None:
    has_system, thinks = TEMPLATES[name].has_system, TEMPLATES[name].thoughts is not None
    rows = [PLAIN, conversation("1", "3", weight=0), conversation("1", "3", system=has_system)]
    rows += (
        [THINKING, conversation("1", THOUGHTS[1] + "3")] if thinks else [conversation(THOUGHTS[0] + "1", "3")]
    )
    rows.append(Conversation(PLAIN.messages[:2]))

    for row in rows:
        formatted = format_rows(
            [(1, row)], tokenizer, assistant_only=assistant_only, max_length=10_000, moment=MOMENT
        )
        check_prompts(formatted.samples, tokenizer, moment=MOMENT)
        prompt_ids = render_prompt(row, tokenizer, moment=MOMENT)
        assert formatted.rows[0].input_ids[: len(prompt_ids)] == prompt_ids


def test_equal_turns_are_each_learned(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A search for the content would find the question, or an earlier answer."""
    first, last = TEMPLATES[name].answers
    exchange = (Message("user", "1"), Message("assistant", "1"))

    found = learned(Conversation(exchange * 3), tokenizer)

    assert found == [first.format("1"), first.format("1"), last.format("1")]


@pytest.mark.parametrize("content", ["", "  1  ", "1\n\n", "</think>", "<b>1</b>", "🎉", "user\n1"])
def test_odd_content_is_learned_without_what_follows_it(
    name: str, tokenizer: PreTrainedTokenizerBase, content: str
) -> None:
    """Templates may trim it, or leave it out."""
    first, last = (pieces.partition("{}") for pieces in TEMPLATES[name].answers)

    found = "".join(learned(conversation(content, "3"), tokenizer))

    assert found.endswith(last[0] + "3" + last[2])
    earlier = found.removesuffix(last[0] + "3" + last[2])
    assert earlier.startswith(first[0].rstrip()) or content == "</think>"
    assert earlier.endswith(first[2])
    body = earlier.removesuffix(first[2]).removeprefix(first[0].rstrip()).strip()
    assert body in content.strip()


def test_the_questions_are_never_learned(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [PLAIN, conversation("1", "3", weight=0)]
    rows += [THINKING] if TEMPLATES[name].thoughts else []

    for row in rows:
        assert not any(word in text for text in learned(row, tokenizer) for word in ("What is", "plus two"))


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "deepseek_r1_distill", "gptoss", "phi3"])
def test_turns_of_the_assistant_may_follow_each_other(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    _first, last = TEMPLATES[name].answers
    messages = (QUESTIONS[0], Message("assistant", "1"), Message("assistant", "2"), Message("assistant", "3"))

    found = learned(Conversation(messages), tokenizer)

    assert "".join(found).endswith(last.format("3"))
    assert len(found) == 3
    prompt_ids = render_prompt(Conversation(messages), tokenizer, moment=MOMENT)
    input_ids = encode_row(Conversation(messages), tokenizer, assistant_only=True, moment=MOMENT).input_ids
    assert input_ids[: len(prompt_ids)] == prompt_ids


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss", "phi3", "smollm3"])
def test_a_conversation_may_begin_with_the_assistant(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    _first, last = TEMPLATES[name].answers
    messages = (Message("assistant", "Ask me."), QUESTIONS[0], Message("assistant", "1"))

    found = learned(Conversation(messages), tokenizer)

    assert "Ask me." in found[0]
    assert found[1] == last.format("1")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("think", "\n</think>\n\n3</s>"), ("seed:think", "\n</seed:think>\n\n3</s>"), ("bot", None)],
)
def test_only_an_opened_thought_is_ended(tag: str, expected: str | None) -> None:
    """A header of a template that writes another one into finished conversations is no thought."""
    template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
        "{% if loop.last and message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]<" + tag + ">\\n' }}{% endif %}"
    )
    tokenizer = with_controls(("<s>", "</s>"), template=template)

    if expected is None:
        with pytest.raises(TemplateMismatch, match="<bot>"):
            learned(PLAIN, tokenizer)
    else:
        assert learned(PLAIN, tokenizer)[-1] == expected
