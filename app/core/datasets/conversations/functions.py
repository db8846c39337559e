"""Functions that a row lists, and calls of them.

They are read as OpenAI, TRL, ShareGPT, ms-swift and LLaMA-Factory write them. Knows no files. Every error is
for the person who made the file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.field_names import meaning_of
from app.core.datasets.problems import BadRow, quoted, repeated, shown
from app.core.datasets.readers.json_values import BadJson, decode_json, kind_of
from app.core.datasets.unused_fields import EMPTY_TEXTS, RowFields, is_absent

# Names of the same field: OpenAI's and TRL's first, then those of Llama's and Anthropic's own calls.
_ARGUMENTS = ("arguments", "parameters", "input")
_PARAMETERS = ("parameters", "input_schema")
# Calls as Hermes and Qwen write them into the text.
_WRITTEN_CALLS = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
_WRITTEN_RESULT = re.compile(r"\s*<tool_response>\s?(.*?)\s?</tool_response>\s*", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(?=[\[{])", re.DOTALL)


def functions_of(cell: object, column: str, fields: RowFields) -> tuple[FunctionTool, ...]:
    """Returns the functions in a column: a list of them, or its JSON in a cell of text. Raises BadRow."""
    listed = _decoded(cell, quoted([column]))
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        raise BadRow(f"{quoted([column])} must be a list of functions, found {kind_of(listed)}.")
    found = [
        _function(one, f"function {number} of {quoted([column])}", f"{column}[]", fields)
        for number, one in enumerate(listed, start=1)
        if not is_absent(one)
    ]
    if twice := repeated(tool.name for tool in found):
        raise BadRow(f"{quoted([column])} has the function {quoted(twice)} more than once. Keep one of them.")
    return tuple(found)


def calls_of(value: object, where: str, path: str, fields: RowFields) -> tuple[ToolCall, ...]:
    """Returns calls: a list of them, one alone, or their JSON as text. Raises BadRow."""
    listed = _decoded(value, f"{where}: the calls")
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        raise BadRow(f"{where}: the calls must be a list, found {kind_of(listed)}.")
    calls = [
        _call(one, f"{where}: call {number}", path, fields)
        for number, one in enumerate(listed, start=1)
        if not is_absent(one)
    ]
    if not calls:
        raise BadRow(f"{where} calls no function.")
    if twice := repeated(call.id for call in calls if call.id is not None):
        raise BadRow(f"{where} has two calls with the id {quoted(twice)}. Give each call an id of its own.")
    return tuple(calls)


def split_thought(content: object) -> tuple[str | None, object]:
    """Returns the thoughts before calls that are written as JSON text (LLaMA-Factory), and the calls."""
    thought = _THOUGHT.match(content) if isinstance(content, str) else None
    if thought is None or not isinstance(content, str):
        return None, content
    return thought[1].strip() or None, content[thought.end() :]


def split_written_calls(text: str) -> tuple[str, list[Any]]:
    """Returns the text without the calls that it ends with, written as Hermes does, and their JSON.

    Where anything in them is no call, all is text.
    """
    start = text.find("<tool_call>")
    if start < 0:
        return text, []
    found, place = [], start
    while match := _WRITTEN_CALLS.match(text, place):
        try:
            call = decode_json(match[1].strip())
        except BadJson:
            return text, []
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "function" in call:
            return text, []
        found.append(call)
        place = match.end()
    return (text[:start].rstrip(), found) if place == len(text) else (text, [])


def unwrapped_result(text: str) -> str:
    """Returns a result without Hermes' `<tool_response>` around it, which templates write themselves."""
    match = _WRITTEN_RESULT.fullmatch(text)
    return match[1] if match and "<tool_response>" not in match[1] else text


def checked_calls(
    calls: Sequence[ToolCall], tools: Sequence[FunctionTool], where: str
) -> tuple[ToolCall, ...]:
    """Returns calls of listed functions, without nulls for arguments that a function does not have.

    Parquet fills an object with the keys of all others of its column. Where no function is listed, any may be
    called. Raises BadRow.
    """
    if not tools:
        return tuple(calls)
    listed = {tool.name: tool for tool in tools}
    if unknown := [call.name for call in calls if call.name not in listed]:
        raise BadRow(
            f"{where} calls {quoted(unknown)}, which is not among the row's functions: {quoted(listed)}."
        )
    return tuple(_without_nulls(call, listed[call.name]) for call in calls)


def checked_json(value: object, where: str) -> None:
    """Raise BadRow for a value that JSON text in UTF-8 can't hold: NaN, or half of a character."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise BadRow(f"{where} hold {half}, half of a surrogate pair. Write the whole character.") from None
    except (ValueError, TypeError, RecursionError):
        raise BadRow(f"{where} are not JSON: NaN, or nested too deeply.") from None


def _function(value: object, where: str, path: str, fields: RowFields) -> FunctionTool:
    value = _decoded(value, where)
    if not isinstance(value, dict):
        raise BadRow(f"{where} must be an object with a 'name', found {kind_of(value)}.")
    kind = value.get("type")
    function = value.get("function")
    if kind not in (None, "function") and (isinstance(kind, str) and "name" not in value):
        raise BadRow(f"{where} has the type {shown(kind)}; only functions can be called.")
    if isinstance(function, dict):
        value, path = function, f"{path}.function"
    parameters_key = next((key for key in _PARAMETERS if not is_absent(value.get(key))), None)
    parameters = _decoded(value[parameters_key], f"{where}: its parameters") if parameters_key else None
    if not (parameters is None or isinstance(parameters, dict)):
        raise BadRow(f"{where}: its parameters must be an object, found {kind_of(parameters)}.")
    checked_json(parameters, f"{where}: its parameters")
    used = {"name", "description", "strict", "type", *_PARAMETERS}
    for key, one in value.items():
        if key not in used:
            fields.add(f"{path}.{key}", one, None)
    return FunctionTool(
        name=_text(value.get("name"), f"{where}: its 'name'"),
        description=_text(value["description"], f"{where}: its 'description'", may_be_empty=True)
        if not is_absent(value.get("description"))
        else None,
        parameters=_without_absent(parameters) or None,
        strict=value.get("strict") is True,
    )


def _call(value: object, where: str, path: str, fields: RowFields) -> ToolCall:
    value = _decoded(value, where)
    if not isinstance(value, dict):
        raise BadRow(f"{where} must be an object with a 'name' and 'arguments', found {kind_of(value)}.")
    kind, call_id = value.get("type"), value.get("id")
    if isinstance(kind, str) and kind not in ("function", "tool_call", "tool_use"):
        raise BadRow(f"{where} has the type {shown(kind)}; only functions can be called.")
    called = value.get("function")
    called = called if isinstance(called, dict) else value
    key = next((one for one in _ARGUMENTS if called.get(one) is not None), None)
    arguments = _arguments(called[key] if key else None, where)
    for other, one in (*value.items(), *(called.items() if called is not value else ())):
        if other not in ("id", "type", "function", "name", "index", key):
            fields.add(f"{path}.{other}", one, meaning_of(other))
    return ToolCall(
        name=_text(called.get("name"), f"{where}: its 'name'"),
        arguments=arguments,
        id=None if is_absent(call_id) else _text(str(call_id), f"{where}: its 'id'"),
    )


def _arguments(value: object, where: str) -> dict[str, Any]:
    """Returns the arguments of a call: an object, its JSON as text, or nothing."""
    if value is None or (isinstance(value, str) and value.strip() in EMPTY_TEXTS and value.strip() != "[]"):
        return {}
    try:
        arguments = decode_json(value) if isinstance(value, str) else value
    except BadJson as error:
        raise BadRow(f"{where}: its arguments must be a JSON object: {error}") from None
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}: its arguments must be a JSON object, found {kind_of(arguments)}.")
    checked_json(arguments, f"{where}: its arguments")
    return arguments


def _text(value: object, where: str, *, may_be_empty: bool = False) -> str:
    if is_absent(value):
        raise BadRow(f"{where} is missing.")
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        found = "empty text" if isinstance(value, str) else kind_of(value)
        raise BadRow(f"{where} must be text, found {found}.")
    checked_json(value, where)
    return value


def _decoded(value: object, what: str) -> object:
    """Returns a value, or what it is the JSON text of. Raises BadRow."""
    if not isinstance(value, str):
        return value
    try:
        return decode_json(value)
    except BadJson as error:
        raise BadRow(f"{what} must be JSON: {error}") from None


def _without_absent(value: Any) -> Any:
    """Returns a JSON schema without its null keys, which Parquet fills in."""
    if isinstance(value, dict):
        return {key: _without_absent(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_absent(one) for one in value]
    return value


def _without_nulls(call: ToolCall, function: FunctionTool) -> ToolCall:
    schema: Mapping[str, Any] = function.parameters or {}
    properties = schema.get("properties", schema)
    if not isinstance(properties, dict) or all(value is not None for value in call.arguments.values()):
        return call
    arguments = {
        key: value for key, value in call.arguments.items() if value is not None or key in properties
    }
    return call.model_copy(update={"arguments": arguments})
