"""Whether a text is JSON that fits a schema, and whether function calls are the expected ones. Pure."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs

from app.core.chat.json_limits import check_levels

_MAX_SCHEMA_BYTES = 100_000
_MAX_REASON = 500


@dataclass(frozen=True)
class ComparedCall:
    """A function's name, and its arguments by name."""

    name: str
    arguments: Any


def compile_schema(schema: dict[str, Any] | bool) -> Any:
    """Returns a validator of JSON values. Raises ValueError for what is no JSON schema.

    References to other documents are refused: nothing is fetched. Patterns are matched in time linear in the
    text, so they have no look-around and no back-references.
    """
    if len(json.dumps(schema)) > _MAX_SCHEMA_BYTES:
        raise ValueError(f"longer than {_MAX_SCHEMA_BYTES} bytes")
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            retriever=_refuse_document,
            pattern_options=jsonschema_rs.RegexOptions(),
        )
    except jsonschema_rs.ValidationError as error:
        raise ValueError(f"no JSON schema: {_explain(error)}") from None
    except ValueError as error:
        raise ValueError(f"no JSON schema: {error}") from None


def explain_misfit(text: str, schema: dict[str, Any] | bool) -> str | None:
    """Returns why a text is no JSON that fits the schema, or None where it fits."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "The text is not JSON."
    return explain_value(value, schema)


def explain_value(value: Any, schema: dict[str, Any] | bool) -> str | None:
    """Returns why a JSON value does not fit the schema, or None where it fits."""
    try:
        check_levels(value)
        # Half of a surrogate pair is no text of JSON.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as problem:
        return f"The value can't be checked: {problem}."
    error = next(compile_schema(schema).iter_errors(value), None)
    return None if error is None else _explain(error)


def read_calls(value: Any) -> list[ComparedCall]:
    """Returns calls in OpenAI's form, or with name and arguments at the top, the latter perhaps as JSON text.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        value = _loads(value)
    if isinstance(value, dict):
        value = value.get("tool_calls", [value])
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError("the expected calls must be a list")
    return [_read_call(one) for one in value]


def share_of_matches(
    expected: Sequence[ComparedCall], made: Sequence[ComparedCall], *, names_only: bool
) -> float:
    """Returns the number of calls in both, in any order, as a share of the longer list; 1 of none."""
    left = list(made)
    matches = 0
    for call in expected:
        match = next((one for one in left if _is_equal(call, one, names_only=names_only)), None)
        if match is not None:
            left.remove(match)
            matches += 1
    longest = max(len(expected), len(made))
    return matches / longest if longest else 1.0


def _is_equal(first: ComparedCall, second: ComparedCall, *, names_only: bool) -> bool:
    if first.name != second.name:
        return False
    return names_only or _same_json(first.arguments, second.arguments)


def _same_json(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal. 1 and 1.0 are, 1 and true are not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same_json(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same_json, first, second))
    return bool(first == second)


def _read_call(value: Any) -> ComparedCall:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError('a call must be an object such as {"name": "f", "arguments": {}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # A model's arguments that are no JSON are equal to nothing but the same text.
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}")
    return ComparedCall(function["name"], {} if arguments is None else arguments)


def _loads(text: str) -> Any:
    try:
        return json.loads(text or "[]")
    except (ValueError, RecursionError):
        raise ValueError("the expected calls are not JSON") from None


def _refuse_document(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is another document, which is not fetched")


def _explain(error: jsonschema_rs.ValidationError) -> str:
    place = "".join(f"[{step!r}]" for step in error.instance_path)
    return f"{place + ': ' if place else ''}{error.message}"[:_MAX_REASON]
