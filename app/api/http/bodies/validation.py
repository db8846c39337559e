"""Turns pydantic's validation errors of a request into one InvalidRequest with a readable message. Pure."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.api.http.bodies.union_branches import choose_branches, names_a_field
from app.core.errors import InvalidRequest
from app.core.specs import patterns

_MAX_VALUE_LENGTH = 40


def describe(
    problems: Sequence[dict[str, Any]], *, body: object = None, model: type[BaseModel] | None = None
) -> InvalidRequest:
    """An error with the first problem in full and the names of other fields with one.

    `model` is the class of the body, for hints.
    """
    if isinstance(body, bytes) and problems[0]["type"] == "model_attributes_type":
        return InvalidRequest(
            "The body is not JSON.", hint="Send JSON with the header `Content-Type: application/json`."
        )
    if isinstance(body, dict):
        in_body = [problem for problem in problems if problem["loc"][0] == "body"]
        elsewhere = [problem for problem in problems if problem["loc"][0] != "body"]
        problems = elsewhere + choose_branches(in_body, {"body": body})
    by_field: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        by_field.setdefault(_field_name(problem, body), []).append(problem)
    (field, first), *others = by_field.items()
    message = _message(field, first)
    if others:
        names = ", ".join(name or "the body" for name, _ in others[:5]) + (", …" if len(others) > 5 else "")
        count = "1 more field has" if len(others) == 1 else f"{len(others)} more fields have"
        message += f" {count} a problem: {names}."
    return InvalidRequest(message, param=field or None, hint=_hint(field, first[0], model))


def _field_name(problem: dict[str, Any], body: object) -> str:
    """The dotted name of a field (`training.learning_rate`), without pydantic's names for union branches."""
    place, *path = problem["loc"]
    if place != "body" or problem["type"] == "json_invalid":
        return ".".join(map(str, path)) if place != "body" else ""
    if not isinstance(body, dict):
        return ".".join(map(str, path))
    parts = range(1, len(problem["loc"]))
    return ".".join(str(problem["loc"][at]) for at in parts if names_a_field(problem, at, {"body": body}))


def _message(field: str, problems: list[dict[str, Any]]) -> str:
    first = problems[0]
    match first["type"]:
        case "json_invalid":
            return f"The body is not valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}."
        case "missing" if not field:
            return "The request has no body; JSON is expected."
        case "missing":
            return f"{field} is missing."
        case "extra_forbidden":
            return f"There is no field {field}."
        case "model_attributes_type" | "model_type":
            return f"{field or 'The body'} must be a JSON object."
        case "string_too_short" | "too_short" if first["ctx"]["min_length"] == 1:
            return f"{field or 'The body'} is empty."
        case "string_pattern_mismatch":
            return (
                f"{field}: {first['input']!r} is not possible: {patterns.describe(first['ctx']['pattern'])}."
            )
    texts = list(dict.fromkeys(_sentence(problem["msg"]) for problem in problems))
    found = first.get("input")
    shown = f" (found {found!r})" if _is_short_scalar(found) else ""
    where = f"{field}: " if field else ""
    return f"{where}{'; or: '.join(texts)}{shown}."


def _sentence(text: str) -> str:
    text = text.removeprefix("Value error, ").rstrip(".")
    return text.replace("Input should", "must").replace("String should", "must")


def _is_short_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float | str) and len(repr(value)) <= _MAX_VALUE_LENGTH


def _hint(field: str, problem: dict[str, Any], model: type[BaseModel] | None) -> str | None:
    if model is None or not field:
        return None
    *parents, name = field.split(".")
    known = _fields_at(model, parents)
    if name in known:
        return known[name].description
    if problem["type"] != "extra_forbidden":
        return None
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    # The field may belong to another part of the body.
    for parent, info in model.model_fields.items():
        if name in _fields_of(info.annotation):
            return f"Did you mean `{parent}.{name}`?"
    return f"Known here: {', '.join(known)}." if known else None


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> dict[str, FieldInfo]:
    node: object = model
    for part in path:
        fields = _fields_of(node)
        if not part.isdigit():
            node = fields[part].annotation if part in fields else None
    return _fields_of(node)


def _fields_of(annotation: object) -> dict[str, FieldInfo]:
    model = _submodel(annotation)
    return model.model_fields if model else {}


def _submodel(annotation: object) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `list[Turn] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _submodel(part))), None)
