"""Calls as LFM2 and LFM2.5 write them: a Python list of calls with named arguments, between two markers."""

import ast
import json
from dataclasses import dataclass
from typing import Any

import regex

from worker.inference.answers.calls import Functions, ParsingCalls
from worker.inference.answers.source import AnswerSource, Match, Pattern, Piece, PieceKind

_LIST = regex.compile(r"\s*(?P<list>\[(?s:.*?)\])\s*<\|tool_call_end\|>")
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonCalls:
    """Calls that are parsed once they are complete."""

    begin: Pattern

    @property
    def bare(self) -> None:
        """None: these calls have a marker."""
        return None

    def parse(self, source: AnswerSource, functions: Functions, begin: Match | None) -> ParsingCalls:
        """Parse the list after the marker."""
        found = yield from source.match(_LIST)
        calls = _read(found["list"]) if found is not None else None
        if found is None or calls is None:
            return False
        yield source.skip(found.end())
        for name, arguments in calls:
            yield Piece(PieceKind.CALL, name)
            yield Piece(PieceKind.ARGUMENTS, arguments)
            yield Piece(PieceKind.CALL_END)
        source.mark()
        return True


def _read(text: str) -> list[tuple[str, str]] | None:
    """The functions' names and their arguments as JSON; None for text that is no list of calls."""
    try:
        found = ast.parse(text.strip(), mode="eval").body
        calls = found.elts if isinstance(found, ast.List) else []
        return [_as_call(call) for call in calls] or None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _as_call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("no call of a function with named arguments")
    arguments = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    return node.func.id, json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                str(_value(key)): _value(value)
                for key, value in zip(keys, values, strict=True)
                if key is not None
            }
    return ast.literal_eval(node)
