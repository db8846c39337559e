"""Calls of functions in an answer: a syntax of patterns that most families share, and its parser."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import regex

from app.core.chat.tools import FunctionTool
from worker.inference.answers.source import AnswerSource, JsonSpan, Match, Pattern, Piece, PieceKind

_OBJECT = regex.compile(r"\s*\[?\s*(?=\{)")
_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")

Functions = Mapping[str, FunctionTool]
# Whether all that was read are calls. If not, what was consumed since the source's mark is text.
ParsingCalls = Generator[Piece | None, None, bool]


class CallParser(Protocol):
    """Parses the calls of one family."""

    @property
    def begin(self) -> Pattern:
        """What calls begin with, and the whitespace before it."""

    @property
    def bare(self) -> Pattern | None:
        """What the beginning of an answer of calls without a marker looks like; it consumes nothing."""

    def parse(self, source: AnswerSource, functions: Functions, begin: Match | None) -> ParsingCalls:
        """Parse the calls after what they begin with; None: no marker. Marks the source after each."""


@dataclass(frozen=True)
class CallWriting:
    """How a family writes calls: `begin`, then each call, with `separator` between two, then `end`.

    A call is `before_name`, its name, `before_arguments`, the JSON of its arguments and `after_arguments`.
    `tokens` are the markers in these texts that the tokenizers of the family have as one token.
    """

    before_name: str
    before_arguments: str
    after_arguments: str = ""
    begin: str = ""
    separator: str = ""
    end: str = ""
    tokens: tuple[str, ...] = ()

    @property
    def first_marker(self) -> str | None:
        """The marker that calls begin with; None where they have none."""
        text = self.begin or self.before_name
        return next((token for token in self.tokens if text.startswith(token)), None)


@dataclass(frozen=True)
class Header:
    """What comes before a call's arguments, with the name in the group `name`; `footers` come after them."""

    pattern: Pattern
    footers: tuple[Pattern, ...] = ()


@dataclass(frozen=True)
class CallSyntax:
    """Calls whose arguments are a JSON object between a header and footers.

    `headers` are tried in turn. `has_objects`: a call is a JSON object of name and arguments, so that it can
    be read as a whole where no header matches. `separator` stands between two calls after one marker, `ends`
    after the last one, each where it is there.
    """

    begin: Pattern
    headers: tuple[Header, ...]
    has_objects: bool = False
    bare: Pattern | None = None
    separator: Pattern | None = None
    ends: tuple[Pattern, ...] = ()

    def parse(self, source: AnswerSource, functions: Functions, begin: Match | None) -> ParsingCalls:
        """Parse the calls. Those without a marker have to name a function that was offered."""
        known = functions if begin is None else None
        while True:
            if not (yield from self._parse_call(source, known)):
                return False
            source.mark()
            separator = (yield from source.match(self.separator)) if self.separator else None
            if separator is None:
                break
            yield source.skip(separator.end())
        yield from _skip_each(source, self.ends)
        return True

    def _parse_call(self, source: AnswerSource, known: Functions | None) -> ParsingCalls:
        for header in self.headers:
            found = yield from source.match(header.pattern)
            if found is None:
                continue
            name = found["name"].strip()
            if known is not None and name not in known:
                return False
            yield Piece(PieceKind.CALL, name)
            yield source.skip(found.end())
            if not (yield from parse_arguments(source)):
                return False
            yield from _skip_each(source, header.footers)
            yield Piece(PieceKind.CALL_END)
            return True
        if source.is_cut and self._may_begin(source.text):
            yield source.skip(len(source.text))
            return True
        return (yield from _parse_object(source, known)) if self.has_objects else False

    def _may_begin(self, text: str) -> bool:
        """Whether the text may be the beginning of a call, without its name yet."""
        return any(header.pattern.match(text, partial=True) for header in self.headers)


class EitherCalls:
    """Calls of several families, told apart by what they begin with; without a marker, the first one's."""

    def __init__(self, parsers: Sequence[CallParser]) -> None:
        self._parsers = parsers
        self.begin = regex.compile(
            "|".join(f"(?P<family{place}>{one.begin.pattern})" for place, one in enumerate(parsers))
        )
        self.bare = parsers[0].bare

    def parse(self, source: AnswerSource, functions: Functions, begin: Match | None) -> ParsingCalls:
        """Parse the calls of the family that they begin as."""
        place = 0 if begin is None else int(begin.lastgroup.removeprefix("family"))
        return (yield from self._parsers[place].parse(source, functions, begin))


def parse_arguments(source: AnswerSource) -> ParsingCalls:
    """Parse the arguments of a call as they arrive. Withdraws the call where they are no JSON object."""
    span, parts = JsonSpan(), []
    end = None
    while end is None:
        end = span.read(source.text)
        if part := source.take(len(source.text) if end is None else end):
            parts.append(part)
            yield Piece(PieceKind.ARGUMENTS, part, len(part))
        if end is None and source.is_complete:
            # As in OpenAI's API, a call that was cut off remains one.
            return source.is_cut or (yield from withdraw())
        if end is None:
            yield None
    return as_arguments("".join(parts)) is not None or (yield from withdraw())


def withdraw() -> ParsingCalls:
    """Withdraw the call that has begun. Returns False."""
    yield Piece(PieceKind.WITHDRAWN)
    return False


def _skip_each(source: AnswerSource, patterns: tuple[Pattern, ...]) -> Generator[Piece | None, None, None]:
    for pattern in patterns:
        found = yield from source.match(pattern)
        if found is not None:
            yield source.skip(found.end())


def _parse_object(source: AnswerSource, known: Functions | None) -> ParsingCalls:
    """Parse a call from a whole JSON object, in which name and arguments may come in any order."""
    found = yield from source.match(_OBJECT)
    if found is None:
        return False
    span, read = JsonSpan(), found.end()
    while (end := span.read(source.text[read:])) is None:
        if source.is_complete:
            return False
        read = len(source.text)
        yield None
    end += read
    call = _as_call(source.text[found.end() : end])
    if call is None or (known is not None and call[0] not in known):
        return False
    yield Piece(PieceKind.CALL, call[0])
    yield Piece(PieceKind.ARGUMENTS, call[1], end)
    source.take(end)
    yield Piece(PieceKind.CALL_END)
    return True


def _as_call(text: str) -> tuple[str, str] | None:
    """The function's name and its arguments as JSON; None for text that is no call."""
    call = as_arguments(text)
    if call is not None and isinstance(call.get("function"), dict):
        call = call["function"]
    name = next((call[key] for key in _NAME_KEYS if isinstance(call.get(key), str)), None) if call else None
    if not call or not name:
        return None
    arguments: Any = next((call[key] for key in _ARGUMENT_KEYS if call.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = as_arguments(arguments)
    return (name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def as_arguments(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is; None for any other text."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
