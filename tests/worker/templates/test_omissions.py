"""What a template leaves out of a row, and how that is said."""

from datetime import UTC, datetime

import pytest
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Completion, Conversation, Message, PlainText
from tests.worker.templates.reasoning_templates import CHATML, TEMPLATES, THOUGHTS, Published
from tests.worker.templates.test_turns import PLAIN, QUESTIONS, THINKING, conversation
from worker.templates.notices import describe_row, describe_rows
from worker.templates.omissions import Omission
from worker.templates.token_rows import EncodedRow, encode_row, format_rows

MOMENT = datetime(2026, 3, 5, tzinfo=UTC)
THOUGHT = THOUGHTS[0].strip()
STRIPS = {
    *("qwen3", "qwen3_5_think", "qwen3_6", "deepseek_r1_distill", "deepseekv3"),
    *("glm4moe", "lfm2_2_5", "nemotron_3_nano"),
}


def encode(row: Conversation, name: str, *, assistant_only: bool = False) -> EncodedRow:
    return encode_row(row, TEMPLATES[name].tokenizer(name), assistant_only=assistant_only, moment=MOMENT)


@pytest.mark.parametrize("assistant_only", [False, True])
@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.thoughts])
def test_thoughts_of_earlier_turns_are_named_where_the_template_leaves_them_out(
    name: str, assistant_only: bool
) -> None:
    row = encode(THINKING, name, assistant_only=assistant_only)

    text = TEMPLATES[name].tokenizer(name).decode(row.input_ids)
    assert ("Add one to 0." in text) is (name not in STRIPS)
    found = [(omission.message, omission.text) for omission in row.omissions]
    assert found == ([(2, THOUGHT)] if name in STRIPS else [])


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_is_named_of_a_plain_conversation(name: str) -> None:
    for row in (PLAIN, conversation("  1\n", "3  "), conversation("", "3")):
        assert encode(row, name).omissions == ()


def test_a_system_message_that_is_left_out_is_named() -> None:
    two = (Message("system", "Be brief."), Message("system", "Count well."), *PLAIN.messages)

    row = encode(Conversation(two), "deepseek_r1_distill")

    assert row.omissions == (Omission(1, "Be brief."),)


def test_a_turn_that_is_left_out_is_named() -> None:
    silent = Published(
        CHATML,
        ("{}", "{}"),
        None,
        template="{% for message in messages %}{% if loop.index != 3 %}{{ message.role + message.content }}"
        "<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
    )
    row = Conversation((*QUESTIONS, Message("user", "Again?"), Message("assistant", "3")))

    encoded = encode_row(row, silent.tokenizer(""), assistant_only=False)

    assert encoded.omissions == (Omission(3, "Again?"),)


def test_a_notice_says_how_much_and_shows_its_beginning() -> None:
    long = conversation("<think>\n" + "Count. " * 20 + "\n</think>\n\n1", "3")

    (notice,) = describe_row(encode(THINKING, "qwen3"))
    (cut,) = describe_row(encode(long, "qwen3"))

    assert notice == f"The chat template leaves out {len(THOUGHT)} characters of message 2: {THOUGHT!r}."
    assert cut.startswith(
        "The chat template leaves out 157 characters of message 2: '<think>\\nCount. Count."
    )
    assert cut.endswith("…'.")


@pytest.mark.parametrize(
    ("name", "row", "is_empty"),
    [
        ("deepseek_r1_distill", PLAIN, True),
        ("deepseek_r1_distill", THINKING, False),
        ("qwen3", PLAIN, False),
        ("nemotron_3_nano", PLAIN, True),
    ],
)
def test_an_empty_thought_that_is_learned_is_named(name: str, row: Conversation, is_empty: bool) -> None:
    notices = describe_row(encode(row, name))

    assert any("the model learns to end an empty one" in notice for notice in notices) is is_empty


def test_a_dataset_has_one_notice_of_each_kind() -> None:
    tokenizer = TEMPLATES["deepseek_r1_distill"].tokenizer("deepseek_r1_distill")
    rows = [(3, PLAIN), (5, THINKING), (7, THINKING), (9, Conversation(PLAIN.messages[:2]))]

    formatted = format_rows(rows, tokenizer, assistant_only=False, max_length=1000)

    omitted, empty = describe_rows(formatted, lambda count: 100 * count)
    assert (omitted.code, empty.code) == ("template_omits", "empty_thoughts")
    assert "a part of 200 rows" in omitted.message
    assert f"In line 5 these are {len(THOUGHT)} characters of message 2: {THOUGHT!r}." in omitted.message
    assert "in 200 rows, line 3 first" in empty.message


def test_rows_without_a_template_have_no_notices(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(1, Completion("How?", "So.")), (2, PlainText("So."))]

    assert not list(describe_rows(format_rows(rows, tokenizer, assistant_only=False, max_length=100)))
