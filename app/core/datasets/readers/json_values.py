"""Strict JSON for dataset rows: a repeated key is an error, and every error has one short message."""

import json
import math
from typing import Any

from app.core.datasets.problems import repeated

_MAX_DIGITS = 400  # Python refuses integers of more than 4,300 digits; here, longer ones become floats.


class BadJson(ValueError):
    """Text that is not JSON, or not what a row may contain; the message is a sentence.

    `position` is the character where decoding stopped; None where the error has no position.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class RepeatedKey(BadJson):
    """One object has the same key twice, so one of the values would be lost."""


def decode_json(text: str) -> object:
    """Returns the only value of a text. Raises BadJson."""
    try:
        return _strict.decode(text)
    except json.JSONDecodeError as error:
        raise BadJson(f"not valid JSON: {_reason(error)} at column {error.colno}.", error.pos) from None
    except RecursionError:
        raise BadJson("the JSON is nested too deeply.") from None


def decode_json_at(text: str, start: int) -> tuple[object, int]:
    """Returns the value that begins at `start`, and the position after it.

    For an object with a repeated key, the value is the error itself. Raises BadJson where there is no value.
    """
    try:
        try:
            return _strict.raw_decode(text, start)
        except RepeatedKey as error:
            return error, _lenient.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        raise BadJson(f"not valid JSON: {_reason(error)}.", error.pos) from None
    except RecursionError:
        raise BadJson("the JSON is nested too deeply.") from None


def kind_of(value: object) -> str:
    """Returns the kind of a value, for a message, in JSON's terms."""
    if value == []:
        return "an empty list"
    if isinstance(value, float) and math.isnan(value):
        return "NaN, a missing value"
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = repeated(key for key, _ in pairs)
        raise RepeatedKey(f"the key {twice[0][:60]!r} is there twice in one object. Keep one of them.")
    return record


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _MAX_DIGITS else float(digits)


_strict = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
_lenient = json.JSONDecoder(parse_int=_integer)


def _reason(error: json.JSONDecodeError) -> str:
    """The reason without the words before the place: "Unterminated string starting at" is followed by it."""
    return error.msg.removesuffix(" at").removesuffix(" starting")
