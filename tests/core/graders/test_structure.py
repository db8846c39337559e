"""Grades of structure: JSON schemas and tool calls."""

from typing import Any

import pytest

from app.core.graders.samples import GradedSample, tool_call
from tests.core.graders.grading import run

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


FIND = {"name": "find", "arguments": {"city": "Oslo", "n": 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"n": 1}', None),
        ('{"n": "1"}', '[\'n\']: "1" is not of type "integer"'),
        ("{}", '"n" is a required property'),
        ("n: 1", "The text is not JSON."),
    ],
)
def test_json_schema_says_why_an_answer_does_not_fit(text: str, reason: str | None) -> None:
    found = run({"type": "json_schema", "schema": SCHEMA}, text)

    assert (found.score, found.reason) == (float(reason is None), reason)


def test_a_pattern_that_would_go_back_for_ever_takes_linear_time() -> None:
    spec = {"type": "json_schema", "schema": {"type": "string", "pattern": "^(a|a)*$"}}

    assert run(spec, f'"{"a" * 50_000}b"').score == 0


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, '"\\ud800"'])
def test_json_that_can_not_be_checked_does_not_fit(text: str) -> None:
    found = run({"type": "json_schema", "schema": {"items": {"$ref": "#"}}}, text)

    assert found.score == 0
    assert found.reason is not None
    assert found.reason.startswith("The value can't be checked")


@pytest.mark.parametrize(
    ("made", "expected", "compare", "score"),
    [
        ([("find", '{"n": 1.0, "city": "Oslo"}')], [FIND], "arguments", 1),
        ([("find", '{"n": true, "city": "Oslo"}')], [FIND], "arguments", 0),
        ([("find", '{"n": 2}')], [FIND], "names", 1),
        ([("find", "no JSON")], [FIND], "arguments", 0),
        ([], [FIND], "arguments", 0),
        ([], [], "arguments", 1),
        ([("find", "{}")], [], "names", 0),
        ([("b", "{}"), ("a", "{}")], [{"name": "a"}, {"name": "b"}], "arguments", 1),
        ([("a", "{}"), ("a", "{}")], [{"name": "a"}], "arguments", 0.5),
    ],
)
def test_calls_are_compared_in_any_order(
    made: list[tuple[str, str]], expected: list[Any], compare: str, score: float
) -> None:
    sample = GradedSample("", tuple(tool_call(name, arguments) for name, arguments in made))
    spec = {"type": "tool_call", "reference": "{{item.calls}}", "compare": compare}

    assert run(spec, sample, {"calls": expected}).score == score


def test_expected_calls_may_be_openais_with_arguments_as_text() -> None:
    sample = GradedSample("", (tool_call("find", '{"city": "Oslo"}', "call_1"),))
    expected = [tool_call("find", '{ "city" : "Oslo" }', "call_2")]

    found = run({"type": "tool_call", "reference": expected}, sample)

    assert (found.score, found.passed) == (1, True)
