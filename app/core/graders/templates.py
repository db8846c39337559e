"""Templates such as `{{item.answer}}` and `{{sample.output_tools[0].function.name}}`. Pure.

The syntax is OpenAI's: two namespaces, `item` and `sample`, and paths of names and numbers. Text that is
filled in is not read as a template again.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

Namespaces = Mapping[str, Any]

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]\s]+)|\[(\d+)\]|\[\"([^\"]+)\"\]|\['([^']+)'\]")
_NAMESPACES = ("item", "sample")
MAX_RENDERED = 2_000_000


class VariableMissing(Exception):
    """A template names a variable that is not there."""

    def __init__(self, path: str, reason: str) -> None:
        self.namespace = path.partition(".")[0].partition("[")[0]
        super().__init__(f"{{{{{path}}}}}: {reason}.")


def check(template: str) -> None:
    """Raise ValueError for a placeholder that is no path in `item` or `sample`."""
    for match in _PLACEHOLDER.finditer(template):
        _parse(match[1].strip())


def render(template: str, namespaces: Namespaces) -> str:
    """Returns the template with every placeholder filled in; what is no text is written as JSON.

    Raises VariableMissing, and ValueError as `check` does and for a text of more than `MAX_RENDERED` letters.
    """
    parts: list[str] = []
    size = end = 0
    for match in _PLACEHOLDER.finditer(template):
        parts += [template[end : match.start()], _as_text(_find(match[1].strip(), namespaces))]
        size, end = size + len(parts[-1]), match.end()
        if size > MAX_RENDERED:
            raise ValueError(f"A template that is filled in has more than {MAX_RENDERED} letters.")
    return "".join((*parts, template[end:]))


def resolve(template: str, namespaces: Namespaces) -> Any:
    """Returns the value itself where the template is one placeholder and no more, else the rendered text.

    Raises as `render` does.
    """
    match = _PLACEHOLDER.fullmatch(template.strip())
    if match and "}}" not in match[1]:
        return _find(match[1].strip(), namespaces)
    return render(template, namespaces)


def _parse(path: str) -> tuple[str, list[str | int]]:
    name = re.match(r"[^.\[\s]*", path)
    namespace = name[0] if name else ""
    if namespace not in _NAMESPACES:
        raise ValueError(f"{{{{{path}}}}} must begin with `item.` or `sample.`")
    steps: list[str | int] = []
    position = len(namespace)
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise ValueError(f"{{{{{path}}}}} is no path such as `item.name` or `sample.output_tools[0]`")
        steps.append(int(step[2]) if step[2] else step[1] or step[3] or step[4])
        position = step.end()
    if not steps:
        raise ValueError(f"{{{{{path}}}}} names no variable: write `{namespace}.` and its name")
    return namespace, steps


def _find(path: str, namespaces: Namespaces) -> Any:
    namespace, steps = _parse(path)
    value = namespaces.get(namespace)
    for step in steps:
        value = _enter(value, step, path)
    return value


def _enter(value: Any, step: str | int, path: str) -> Any:
    # OpenAI's paths go on into the arguments of a call, which are JSON in a text.
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise VariableMissing(path, "a text has no parts") from None
    if isinstance(step, str) and isinstance(value, dict) and step in value:
        return value[step]
    if isinstance(value, list) and str(step).isdecimal() and int(step) < len(value):
        return value[int(step)]
    raise VariableMissing(path, f"there is no {step!r}")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
