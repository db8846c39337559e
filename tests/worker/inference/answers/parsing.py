"""Answers parsed in parts, as what they hold: texts, thoughts and calls in order."""

from collections.abc import Sequence

from app.core.chat.tools import FunctionTool
from worker.inference.answers.families import find_format
from worker.inference.answers.parser import AnswerParser
from worker.inference.answers.source import PieceKind

WEATHER = FunctionTool(
    name="weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "array"}},
        "required": ["city"],
    },
)
TIME = FunctionTool(name="time")
FUNCTIONS = {function.name: function for function in (WEATHER, TIME)}
BAR = "\N{FULLWIDTH VERTICAL LINE}"
JOINED = {PieceKind.TEXT, PieceKind.THOUGHT, PieceKind.ARGUMENTS}

Part = tuple[PieceKind, str]


def text(value: str) -> list[Part]:
    return [(PieceKind.TEXT, value)]


def thought(value: str) -> list[Part]:
    return [(PieceKind.THOUGHT, value)]


def call(name: str, arguments: str) -> list[Part]:
    return [(PieceKind.CALL, name), (PieceKind.ARGUMENTS, arguments), (PieceKind.CALL_END, "")]


def parse(
    template: str,
    parts: Sequence[str],
    *,
    functions: dict[str, FunctionTool] | None = None,
    is_thinking: bool = False,
    is_cut: bool = False,
) -> list[Part]:
    """What the answer in these parts holds. Fails where the pieces do not have the length of the text."""
    offered = FUNCTIONS if functions is None else functions
    parser = AnswerParser(find_format(template), offered, is_thinking=is_thinking)
    pieces = [piece for part in parts for piece in parser.add(part)]
    pieces += parser.finish(is_cut=is_cut)
    assert sum(piece.length for piece in pieces) == len("".join(parts))
    found: list[Part] = []
    for piece in pieces:
        if piece.kind in JOINED and found and found[-1][0] is piece.kind:
            found[-1] = (piece.kind, found[-1][1] + piece.text)
        elif piece.kind is not PieceKind.SKIPPED:
            found.append((piece.kind, piece.text))
    return found


def splits(value: str) -> list[list[str]]:
    """The text in one part, in two at each place, and in parts of one to seven characters."""
    halves = [[value[:place], value[place:]] for place in range(len(value) + 1)]
    return halves + [
        [value[place : place + size] for place in range(0, len(value), size)] for size in range(1, 8)
    ]
