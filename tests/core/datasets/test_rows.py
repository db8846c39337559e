"""The stored form of rows."""

import pytest
from hypothesis import given, strategies as st

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import (
    AnswerComparison,
    Completion,
    Conversation,
    LabelledAnswer,
    Message,
    PlainText,
    Problem,
    Row,
    read_rows,
    write_row,
)

text = st.text(st.characters(exclude_categories=["Cs"]))
json_objects = st.dictionaries(text, text | st.integers() | st.none() | st.lists(st.booleans()), max_size=3)
calls = st.builds(ToolCall, name=text, arguments=json_objects, id=st.none() | text)
tools = st.builds(
    FunctionTool, name=text, description=text, parameters=st.just({"type": "object", "properties": {}})
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    text,
    st.sampled_from([0, 1]),
    st.lists(calls, max_size=2).map(tuple),
    st.none() | text,
    st.none() | text,
    st.none() | text,
)
conversations = st.builds(
    Conversation,
    st.lists(messages, min_size=1, max_size=4).map(tuple),
    st.lists(tools, max_size=2).map(tuple),
)
passages = st.lists(messages, min_size=1, max_size=3).map(tuple)
listed = st.lists(tools, max_size=2).map(tuple)
preferences = st.one_of(
    st.builds(AnswerComparison, text, text, text),
    st.builds(AnswerComparison, passages, passages, passages, listed),
    st.builds(LabelledAnswer, text, text, st.booleans()),
    st.builds(LabelledAnswer, passages, passages, st.booleans(), listed),
)


@given(st.one_of(st.builds(PlainText, text), st.builds(Completion, text, text), conversations, preferences))
def test_a_stored_row_is_read_as_it_was_and_takes_one_line(row: Row) -> None:
    raw = write_row(7, row)
    assert raw.count(b"\n") == 1
    assert list(read_rows([raw])) == [(7, row)]


@pytest.mark.parametrize(
    ("row", "stored"),
    [
        (PlainText("ü\n"), '{"line":3,"text":"ü\\n"}\n'),
        (Completion("p", "c"), '{"line":3,"prompt":"p","completion":"c"}\n'),
        (
            Conversation((Message("assistant", "a", weight=0),)),
            '{"line":3,"messages":[{"role":"assistant","content":"a","weight":0}]}\n',
        ),
        (
            AnswerComparison(
                (Message("user", "q"),), (Message("assistant", "a"),), (Message("assistant", "b"),)
            ),
            '{"line":3,"prompt":[{"role":"user","content":"q"}],'
            '"chosen":[{"role":"assistant","content":"a"}],'
            '"rejected":[{"role":"assistant","content":"b"}]}\n',
        ),
        (LabelledAnswer("p", "c", False), '{"line":3,"prompt":"p","completion":"c","label":false}\n'),
    ],
)
def test_the_stored_form_is_json_lines(row: Row, stored: str) -> None:
    assert write_row(3, row).decode() == stored


def test_a_problem_reads_as_a_sentence() -> None:
    assert str(Problem(14, "'text' is empty.")) == "Line 14: 'text' is empty."
