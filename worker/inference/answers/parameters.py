"""Calls with a tag for each argument, as Qwen3-Coder and GLM-4.5 write them.

What a value is, text or JSON, follows from the function's schema.
"""

import json
from dataclasses import dataclass
from typing import Any

from app.core.chat.tools import FunctionTool
from worker.inference.answers.calls import CallSyntax, Functions, ParsingCalls, withdraw
from worker.inference.answers.source import AnswerSource, Match, Pattern, Piece, PieceKind


@dataclass(frozen=True)
class ParameterCalls:
    """Patterns of a call's name, of one argument with its value, and of what ends the call.

    Where there is no such name, `otherwise` parses the call.
    """

    function: Pattern
    parameter: Pattern
    ends: tuple[Pattern, ...]
    otherwise: CallSyntax

    @property
    def begin(self) -> Pattern:
        """What calls begin with, and the whitespace before it."""
        return self.otherwise.begin

    @property
    def bare(self) -> None:
        """None: these calls have a marker."""
        return None

    def parse(self, source: AnswerSource, functions: Functions, begin: Match | None) -> ParsingCalls:
        """Parse the call after the marker. Its arguments arrive one by one."""
        found = yield from source.match(self.function)
        if found is None:
            return (yield from self.otherwise.parse(source, functions, begin))
        name = found["name"].strip()
        yield Piece(PieceKind.CALL, name)
        yield source.skip(found.end())
        separator = "{"
        while (parameter := (yield from source.match(self.parameter))) is not None:
            value = _as_json(parameter["value"], functions.get(name), parameter["name"])
            text = f"{separator}{json.dumps(parameter['name'])}: {value}"
            yield Piece(PieceKind.ARGUMENTS, text, parameter.end())
            source.take(parameter.end())
            separator = ", "
        for end in self.ends:
            found = yield from source.match(end)
            if found is None:
                return source.is_cut or (yield from withdraw())
            yield source.skip(found.end())
        yield Piece(PieceKind.ARGUMENTS, "{}" if separator == "{" else "}")
        yield Piece(PieceKind.CALL_END)
        source.mark()
        return True


def _as_json(value: str, function: FunctionTool | None, name: str) -> str:
    """The value as JSON: as it is where it is JSON that the schema allows, else as a string."""
    properties: Any = (function.parameters or {}).get("properties", {}) if function else {}
    schema = properties.get(name) if isinstance(properties, dict) else None
    if not (isinstance(schema, dict) and schema.get("type") == "string"):
        try:
            json.loads(value)
        except ValueError:
            pass
        else:
            return value
    return json.dumps(value, ensure_ascii=False)
