"""JSON that requests hand on to the engine: schemas and arguments of functions. Pure."""

import json
from typing import Any, NoReturn

# The engine's parser of JSON stops at 200 levels, of which a request's own fields take a few.
MAX_LEVELS = 100


def parse_arguments(text: str) -> dict[str, Any]:
    """Returns the arguments of a call, which are written as JSON; no text: none.

    Half of a surrogate pair, which UTF-8 can't hold, becomes `?`. Raises ValueError for what is no JSON
    object, and for what is nested too deeply.
    """
    try:
        value = json.loads(text or "{}", parse_constant=_refuse_constant)
        if "\\u" in text:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise ValueError("not a JSON object") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    check_levels(value)
    return value


def check_levels(value: object) -> None:
    """Raise ValueError for JSON with more levels of objects and lists than the engine can read."""
    level = [value]
    for _ in range(MAX_LEVELS):
        level = [item for parent in level for item in _items(parent)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_LEVELS} levels deep")


def _items(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
