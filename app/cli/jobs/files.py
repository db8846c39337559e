"""Reads job files, YAML or JSON, into the body of `POST /jobs`, applies `--set`, and finds an error's line.

Knows no field of a job: the API validates them.
"""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from app.cli.failures import CommandFailed, UsageProblem

STDIN = Path("-")


@dataclass(frozen=True)
class JobFile:
    """The body of a job, the line of each of its fields, and the values of `--set`."""

    path: Path
    body: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the file start from."""
        return Path() if self.path == STDIN else self.path.parent

    def locate(self, failure: CommandFailed) -> CommandFailed:
        """The failure, with the line or the `--set` option of its field in the message."""
        param = failure.param
        if not param:
            return failure
        if param in self.overrides:
            failure.message = f"--set {param}={self.overrides[param]}: {failure.message}"
        elif param in self.lines:
            failure.message = f"{self.path}, line {self.lines[param]}: {failure.message}"
        return failure


def read_job_file(path: Path, overrides: Sequence[str] = ()) -> JobFile:
    """Read a file, or standard input for `-`. Raises UsageProblem where it can't be read."""
    try:
        text = sys.stdin.read() if path == STDIN else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageProblem(
            f"The job file {path} can't be read: {reason}.",
            hint="examples/recipe.yaml is one to start from; `-` reads standard input.",
        ) from None
    parsed = _parse(path, text)
    lines = dict(_lines(parsed))
    body: dict[str, Any] = _plain(path, parsed)
    pairs = dict(_split(pair) for pair in overrides)
    for name, value in pairs.items():
        _set(body, name, _value(name, value))
    return JobFile(path, body, lines, pairs)


def _parse(path: Path, text: str) -> CommentedMap:
    try:
        parsed = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageProblem(
            f"{path}{where}: {error.problem or error.context}.", hint="A job file is YAML or JSON."
        ) from None
    except (YAMLError, ValueError) as error:
        raise UsageProblem(f"{path}: {error}", hint="A job file is YAML or JSON.") from None
    if not isinstance(parsed, CommentedMap):
        raise UsageProblem(
            f"{path} holds no fields.", hint="At least `base_model: …` and `dataset: …` are needed."
        )
    return parsed


def _plain(path: Path, parsed: CommentedMap) -> Any:
    """The fields as JSON types. A date, which YAML makes of 2026-11-25, becomes text again."""
    try:
        return json.loads(json.dumps(parsed, default=str, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageProblem(f"{path} holds what a job can't: {error}.") from None


def _lines(node: object, prefix: str = "") -> list[tuple[str, int]]:
    """The line of each field, counted from 1, by its dotted name."""
    found: list[tuple[str, int]] = []
    if isinstance(node, CommentedMap):
        for name, value in node.items():
            with contextlib.suppress(KeyError):  # a merged key has no place of its own
                found.append((f"{prefix}{name}", node.lc.key(name)[0] + 1))
            found += _lines(value, f"{prefix}{name}.")
    return found


def _split(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    name = name.strip()
    if not equals or not all(name.split(".")):
        raise UsageProblem(
            f"--set {pair} is not of the form field=value.",
            hint="For example --set training.learning_rate=1e-4",
        )
    return name, value.strip()


def _value(name: str, text: str) -> Any:
    """A value as YAML reads it: a number, a truth value, null, a list, or text."""
    try:
        return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text), default=str, allow_nan=False))
    except (YAMLError, ValueError, TypeError):
        raise UsageProblem(f"--set {name}: the value {text!r} can't be read as YAML or JSON.") from None


def _set(body: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if body.get(parent) is None:
            body[parent] = {}
        body = body[parent]
        if not isinstance(body, dict):
            raise UsageProblem(f"--set {name}: {parent} is not a group of fields.")
    body[last] = value
