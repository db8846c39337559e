"""Rows as evaluations read them."""

import random
from typing import Any

import pytest

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import (
    AnswerComparison,
    Completion,
    Conversation,
    LabelledAnswer,
    Message,
    PlainText,
)
from app.core.evaluations.items import ItemUnfit, draw, read_inline, read_row, split_lines
from tests.core.evaluations.evaluations import make_evaluation_spec
from worker.templates.token_rows import TokenRow, hold_out

ASK = Message("user", "Where is my order?")


def test_the_last_answer_is_the_reference_and_what_stands_before_it_the_prompt() -> None:
    row = Conversation((Message("system", "Be brief."), ASK, Message("assistant", "On its way.")))
    found = read_row(7, row, make_evaluation_spec())
    assert found is not None
    assert found.line == found.item["line"] == 7
    assert found.item["reference"] == "On its way."
    assert found.item["input"] == "Where is my order?"
    assert [turn.role for turn in found.prompt.messages or []] == ["system", "user"]


def test_expected_calls_and_functions_are_in_the_item() -> None:
    tool = FunctionTool(name="find", parameters={"type": "object", "properties": {}})
    call = ToolCall(name="find", arguments={"id": 3})
    row = Conversation((ASK, Message("assistant", "", tool_calls=(call,))), (tool,))
    found = read_row(1, row, make_evaluation_spec())
    assert found is not None
    assert found.item["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"id": 3}'}
    assert found.prompt.tools == [tool]


def test_a_comparison_has_its_rejected_answer() -> None:
    row = AnswerComparison((ASK,), (Message("assistant", "good"),), (Message("assistant", "bad"),))
    found = read_row(1, row, make_evaluation_spec())
    assert found is not None
    assert (found.item["reference"], found.item["rejected"]) == ("good", "bad")


@pytest.mark.parametrize(
    "row",
    [
        LabelledAnswer("a", "b", label=False),
        Conversation((Message("assistant", "Hello."),)),
        PlainText("only text"),
    ],
)
def test_rows_without_a_prompt_or_an_answer_to_imitate_are_left_out(row: Any) -> None:
    assert read_row(1, row, make_evaluation_spec()) is None


def test_text_has_a_likelihood_where_nothing_is_generated() -> None:
    perplexity = {"type": "perplexity", "name": "p", "reference": "{{item.reference}}"}
    found = read_row(1, PlainText("text"), make_evaluation_spec(generate=False, graders=[perplexity]))
    assert found is not None
    assert found.item["reference"] == "text"


def test_templates_fill_the_input() -> None:
    spec = make_evaluation_spec(input=[{"role": "developer", "content": "Translate: {{item.prompt}}"}])
    found = read_row(1, Completion("cat", "Katze"), spec)
    assert found is not None
    assert found.prompt.messages is not None
    assert (found.prompt.messages[0].role, found.prompt.messages[0].content) == ("system", "Translate: cat")


def test_a_path_names_messages_of_the_item() -> None:
    item = {"talk": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}
    found = read_inline(item, make_evaluation_spec(input="item.talk"))
    assert found.prompt.messages is not None
    assert found.prompt.messages[0].content == "Hi"


@pytest.mark.parametrize(
    ("item", "fields", "problem"),
    [
        ({"question": "?"}, {}, "neither `messages` nor `prompt`"),
        ({"question": "?"}, {"input": "item.talk"}, "there is no 'talk'"),
        ({"messages": [{"role": "cat", "content": "?"}]}, {}, "the role 'cat'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(item: Any, fields: Any, problem: str) -> None:
    with pytest.raises(ItemUnfit, match=problem):
        read_inline(item, make_evaluation_spec(**fields))


def test_the_same_seed_draws_the_same_rows_in_their_order() -> None:
    lines = list(range(1, 101))
    drawn = draw(lines, 10, seed=3)
    assert drawn == draw(lines, 10, seed=3) == sorted(drawn)
    assert drawn != draw(lines, 10, seed=4)
    assert draw(lines, None, seed=3) == lines


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.99])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_job_holds_out_the_same_rows(share: float, count: int) -> None:
    lines = random.Random(count).sample(range(1, 500), count)
    rows = [TokenRow(line, [1], [1]) for line in lines]
    assert split_lines(lines, share, 11) == [row.line for row in hold_out(rows, share, 11)[1]]
