"""Functions that a request offers, as the engine takes them, and what is refused, by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.api.chat.template_variables import TemplateFields
from app.api.chat.tools import ToolFields
from app.core.engine.messages import NamedFunction, Tools
from app.core.errors import InvalidRequest


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def find(**fields: Any) -> Tools | None:
    return ToolFields.model_validate(fields).find_tools()


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]},
}


def test_functions_and_choices_reach_the_engine() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    found = find(
        tools=[tool("a", description="A.", parameters=schema, strict=True)], parallel_tool_calls=False
    )
    assert found is not None
    (function,) = found.functions
    assert (function.name, function.description, function.parameters) == ("a", "A.", schema)
    assert (function.strict, found.choice, found.parallel) == (True, "auto", False)


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        (None, "auto", ["a", "b"]),
        ("none", "none", ["a", "b"]),
        ("required", "required", ["a", "b"]),
        ({"type": "function", "function": {"name": "b"}}, NamedFunction(name="b"), ["a", "b"]),
        (ALLOWED, "required", ["b"]),
    ],
)
def test_every_form_of_the_choice(choice: Any, expected: Any, names: list[str]) -> None:
    found = find(tools=[tool("a"), tool("b")], tool_choice=choice)
    assert found is not None
    assert (found.choice, [function.name for function in found.functions]) == (expected, names)
    assert found.parallel


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None, "tool_choice": "auto"}])
def test_without_functions_there_is_nothing_to_choose(fields: dict[str, Any]) -> None:
    assert find(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("a"), tool("a")]}, "tools.1.function.name"),
        (
            {"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}},
            "tool_choice",
        ),
        ({"tools": [tool("a")], "tool_choice": ALLOWED}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        find(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool("a b")]},
        {"tools": [tool("é")]},
        {"tools": [tool("")]},
        {"tools": [tool("a" * 65)]},
        {"tools": [tool("a", parameters=["x"])]},
        {"tools": [tool("a", parameters={"type": "array"})]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}]},
        {"tools": [tool(f"f{number}") for number in range(129)]},
        {"tool_choice": "any"},
        {"tool_choice": {"type": "custom", "custom": {"name": "a"}}},
    ],
)
def test_malformed_functions_and_choices_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find(**fields)


def variables(**fields: Any) -> dict[str, Any]:
    return TemplateFields.model_validate(fields).find_variables()


def test_variables_of_the_template() -> None:
    assert variables() == {}
    assert variables(reasoning_effort="high") == {"reasoning_effort": "high"}
    assert variables(chat_template_kwargs={"enable_thinking": False}) == {"enable_thinking": False}
    assert variables(reasoning_effort="none") == {"enable_thinking": False, "thinking": False}
    assert variables(reasoning_effort="none", chat_template_kwargs={"thinking": True})["thinking"] is True


@pytest.mark.parametrize(
    "name", ["messages", "tools", "bos_token", "add_generation_prompt", "tokenize", "chat_template", "a b"]
)
def test_what_the_renderer_sets_can_not_be_set(name: str) -> None:
    with pytest.raises(ValidationError, match="can't be set"):
        variables(chat_template_kwargs={name: []})
