"""Templates of graders."""

from typing import Any

import pytest

from app.core.graders.templates import VariableMissing, check, render, resolve

NAMESPACES: dict[str, Any] = {
    "item": {"answer": "Oslo", "n": 1.5, "tags": ["a", "b"], "a-b": {"c d": 2}, "none": None},
    "sample": {
        "output_text": "{{item.answer}}",
        "output_tools": [{"function": {"name": "find", "arguments": '{"city": {"id": 7}}'}}],
    },
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("It is {{item.answer}}!", "It is Oslo!"),
        ("{{ item.answer }}/{{item.n}}", "Oslo/1.5"),
        ("{{item.tags}} {{item.tags[1]}} {{item.tags.0}}", '["a", "b"] b a'),
        ('{{item["a-b"][\'c d\']}} {{item.a-b["c d"]}}', "2 2"),
        ("{{item.none}}", "null"),
        ("{{sample.output_tools[0].function.name}}", "find"),
        ("{{sample.output_tools[0].function.arguments}}", '{"city": {"id": 7}}'),
        ("{{sample.output_tools[0].function.arguments.city.id}}", "7"),
        ("{not} {a} }}template{{", "{not} {a} }}template{{"),
    ],
)
def test_placeholders_are_filled_in(template: str, text: str) -> None:
    assert render(template, NAMESPACES) == text


def test_text_that_is_filled_in_is_not_a_template() -> None:
    assert render("{{sample.output_text}}", NAMESPACES) == "{{item.answer}}"


@pytest.mark.parametrize(
    "template",
    ["{{item.missing}}", "{{item.tags[2]}}", "{{item.answer.x}}", "{{item.n.x}}", "{{item.tags.x}}"],
)
def test_a_variable_that_is_not_there_is_named(template: str) -> None:
    with pytest.raises(VariableMissing, match=r"\{\{item\."):
        render(template, NAMESPACES)


@pytest.mark.parametrize(
    "template", ["{{}}", "{{answer}}", "{{items.a}}", "{{item.}}", "{{item[x]}}", "{{item .a}}"]
)
def test_what_is_no_path_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"must begin|is no path|names no variable"):
        check(template)


def test_what_is_filled_in_has_a_limit() -> None:
    with pytest.raises(ValueError, match="more than 2000000 letters"):
        render("{{item.a}}" * 10_000, {"item": {"a": "x" * 1_000_000}})


def test_a_placeholder_alone_is_the_value_itself() -> None:
    assert resolve(" {{item.tags}} ", NAMESPACES) == ["a", "b"]
    assert resolve("{{item.answer}}{{item.n}}", NAMESPACES) == "Oslo1.5"
