"""Text that arrives in parts, the pieces that a parser makes of it, and patterns that may match only in part.

A parser is a generator: it yields pieces, and None where it needs more of the text to go on.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import regex

Pattern = Any  # regex.Pattern; the package has no types
Match = Any


class PieceKind(Enum):
    """What a piece of an answer is."""

    TEXT = auto()
    THOUGHT = auto()
    CALL = auto()  # the beginning of a call; `text` is the function's name
    ARGUMENTS = auto()  # more of the arguments' JSON
    CALL_END = auto()
    WITHDRAWN = auto()  # the call that has begun is none; its text follows as TEXT
    SKIPPED = auto()  # markers, and whitespace around them


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. `length`: the characters of the generated text that it stands for."""

    kind: PieceKind
    text: str = ""
    length: int = 0


Parsing = Generator[Piece | None, None, None]


class AnswerSource:
    """The text that has arrived and was not consumed yet."""

    def __init__(self) -> None:
        self.text = ""
        # Whether no more text will arrive, and whether that is because generation was cut off.
        self.is_complete = False
        self.is_cut = False
        # What was consumed since `mark`.
        self._consumed: list[str] | None = None

    def take(self, length: int) -> str:
        """Consume so many characters."""
        taken, self.text = self.text[:length], self.text[length:]
        if self._consumed is not None:
            self._consumed.append(taken)
        return taken

    def mark(self) -> None:
        """Record what is consumed from here on."""
        self._consumed = []

    def since_mark(self) -> str:
        """Returns what was consumed since the mark, and ends the record."""
        consumed, self._consumed = self._consumed or [], None
        return "".join(consumed)

    def skip(self, length: int) -> Piece:
        """Consume so many characters that are not part of the answer."""
        self.take(length)
        return Piece(PieceKind.SKIPPED, length=length)

    def match(self, pattern: Pattern) -> Generator[None, None, Match]:
        """Match a pattern at the beginning, once enough text is there. Returns None where it can't match."""
        while True:
            found = pattern.match(self.text, partial=not self.is_complete)
            if found is None or not found.partial:
                return found
            yield None

    def until(self, pattern: Pattern, kind: PieceKind) -> Generator[Piece | None, None, Match]:
        """Yield text as pieces of this kind up to the first match. Returns the match, None at the end."""
        while True:
            found = pattern.search(self.text, partial=not self.is_complete)
            end = len(self.text) if found is None else found.start()
            if end:
                yield Piece(kind, self.take(end), end)
            if found is None and self.is_complete:
                return None
            if found is not None and not found.partial:
                # Again from the beginning of the text, which is where the match begins now.
                return pattern.match(self.text)
            yield None


_PLAIN_JSON = regex.compile(r'[^"{}\[\]]+')
_PLAIN_STRING = regex.compile(r'[^"\\]+')


class JsonSpan:
    """Finds the end of a JSON object or array that arrives in parts. Does not check that it is JSON."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def read(self, text: str) -> int | None:
        """Read the next part. Returns the index in it after the end of the value, None where it goes on."""
        index = 0
        while index < len(text):
            if self._is_escaped:
                self._is_escaped = False
            elif found := (_PLAIN_STRING if self._is_in_string else _PLAIN_JSON).match(text, index):
                index = found.end()
                continue
            elif text[index] == '"':
                self._is_in_string = not self._is_in_string
            elif text[index] == "\\":
                self._is_escaped = True
            elif not self._is_in_string:
                self._depth += 1 if text[index] in "{[" else -1
                if self._depth == 0:
                    return index + 1
            index += 1
        return None
