"""Makes values storable: no database takes every text or number that Python and JSON can hold.

PostgreSQL refuses NUL in texts, and NaN in JSON; no database stores half of a surrogate pair, which UTF-8
can't write. One such character in an error's text would make the row that has it impossible to write.
"""

import json
import math
import re
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u(0000|d[89a-f])")
_REPLACEMENT = "\ufffd"


def to_storable(text: str) -> str:
    """Returns the text with U+FFFD in place of NUL and of each half of a surrogate pair."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub(_REPLACEMENT, text)


def dump_json(value: Any) -> str:
    """Returns a value as JSON that every database takes: texts storable, null for NaN and infinity."""
    try:
        dumped = json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_make_storable(value), allow_nan=False)
    return json.dumps(_make_storable(value)) if _ESCAPED.search(dumped) else dumped


def storable_parameters(parameters: Any) -> Any:
    """Returns the parameters of a statement, of one row or of several, with storable texts."""
    if isinstance(parameters, dict):
        return {key: storable_parameters(value) for key, value in parameters.items()}
    if isinstance(parameters, list | tuple):
        return type(parameters)(storable_parameters(value) for value in parameters)
    return to_storable(parameters) if isinstance(parameters, str) else parameters


def _make_storable(value: Any) -> Any:
    if isinstance(value, str):
        return to_storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_make_storable(key): _make_storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_make_storable(item) for item in value]
    return value
