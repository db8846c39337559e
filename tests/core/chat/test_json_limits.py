"""JSON that is handed on to the engine."""

from typing import Any

import pytest

from app.core.chat.json_limits import MAX_LEVELS, check_levels, parse_arguments
from app.core.chat.tools import FunctionTool, ToolCall
from app.core.engine.messages import BaseModelRef, ChatMessage, GenerateRequest, Tools
from app.core.specs.job import QuantizationSpec


def test_the_engine_can_read_what_is_within_the_limit() -> None:
    deep: Any = {}
    for _ in range(MAX_LEVELS - 2):
        deep = {"a": deep}
    check_levels(deep)
    request = GenerateRequest(
        base_model=BaseModelRef(name="owner/model", quantization=QuantizationSpec()),
        messages=[ChatMessage(role="assistant", content="", tool_calls=[ToolCall(name="f", arguments=deep)])],
        tools=Tools(functions=[FunctionTool(name="f", parameters=deep)]),
    )
    assert GenerateRequest.model_validate_json(request.model_dump_json()) == request


def test_what_is_deeper_is_refused() -> None:
    deep: Any = {}
    for _ in range(MAX_LEVELS):
        deep = {"a": [deep]}
    with pytest.raises(ValueError, match="100 levels"):
        check_levels(deep)


def test_arguments_are_an_object() -> None:
    assert parse_arguments('{"a": ["\\u00e9", "\\ud83d", "\\ud83d\\ude00"]}') == {"a": ["é", "?", "😀"]}
    assert parse_arguments("") == {}
    for text in ("[]", "1", "null", "{", '{"a": Infinity}', "[" * 10**6):
        with pytest.raises(ValueError, match="not a JSON object"):
            parse_arguments(text)
