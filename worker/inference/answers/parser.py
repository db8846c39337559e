"""Parses one answer while it is generated: its thoughts, its text, and its calls of functions.

Consumes the generated text exactly once: the lengths of the pieces add up to it. What turns out to be no call
is text of the answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import regex

from worker.inference.answers.calls import CallParser, CallWriting, Functions
from worker.inference.answers.source import AnswerSource, Parsing, Pattern, Piece, PieceKind

# The limit keeps the search for a marker linear in the length of whitespace.
BLANKS = r"\s{0,64}"


@dataclass
class Progress:
    """What a parser knows of the request, and whether it is among the thoughts of the answer."""

    functions: Functions
    is_thinking: bool = False


class AnswerFormat(Protocol):
    """How answers of a family are written."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Tokens that the parser has to see although they are special."""

    @property
    def has_thoughts(self) -> bool:
        """Whether answers may begin with thoughts."""

    @property
    def inner_ends(self) -> tuple[str, ...]:
        """Tokens that end a part of an answer, so that they must not end the answer."""

    def is_thinking_after(self, prompt: str) -> bool:
        """Whether the prompt has opened the thoughts, so that the answer begins among them."""

    def may_think_after(self, prompt: str) -> bool:
        """Whether an answer to the prompt may begin with thoughts: it has not ended them."""

    def parse(self, source: AnswerSource, progress: Progress) -> Parsing:
        """Yield the pieces of an answer. Without functions nothing is a call."""


@dataclass(frozen=True)
class ThoughtMarkers:
    """The texts before and after the thoughts that an answer begins with."""

    open: str
    close: str

    @cached_property
    def opening(self) -> Pattern:
        """The beginning of an answer with thoughts."""
        return regex.compile(BLANKS + regex.escape(self.open))

    @cached_property
    def closing(self) -> Pattern:
        """The end of the thoughts, and the whitespace before it."""
        return regex.compile(BLANKS + regex.escape(self.close))


@dataclass(frozen=True)
class MarkedAnswer:
    """Answers of thoughts between markers, then text with calls between markers in it."""

    thoughts: ThoughtMarkers | None
    calls: CallParser
    writing: CallWriting
    call_markers: tuple[str, ...]

    @property
    def markers(self) -> tuple[str, ...]:
        """Tokens that the parser has to see although they are special."""
        return self.call_markers + ((self.thoughts.open, self.thoughts.close) if self.thoughts else ())

    @property
    def has_thoughts(self) -> bool:
        """Whether answers may begin with thoughts."""
        return self.thoughts is not None

    @property
    def inner_ends(self) -> tuple[str, ...]:
        """None: an answer has one end."""
        return ()

    def is_thinking_after(self, prompt: str) -> bool:
        """Whether the prompt ends with the marker that opens thoughts."""
        return self.thoughts is not None and prompt.rstrip().endswith(self.thoughts.open)

    def may_think_after(self, prompt: str) -> bool:
        """Whether there are thoughts, and the prompt does not end with the marker that closes them."""
        return self.thoughts is not None and not prompt.rstrip().endswith(self.thoughts.close)

    def parse(self, source: AnswerSource, progress: Progress) -> Parsing:
        """Yield the pieces of an answer. Without functions nothing is a call."""
        if self.thoughts is not None:
            yield from _parse_thoughts(source, progress, self.thoughts)
        if progress.functions:
            yield from _parse_text_and_calls(source, self.calls, progress.functions)
        else:
            yield from parse_text(source)


class AnswerParser:
    """The parser of one answer that arrives in parts.

    `is_thinking`: the prompt has opened the thoughts already.
    """

    def __init__(self, answer_format: AnswerFormat, functions: Functions, *, is_thinking: bool) -> None:
        self._source = AnswerSource()
        self._progress = Progress(functions, is_thinking)
        self._parsing = answer_format.parse(self._source, self._progress)

    @property
    def is_thinking(self) -> bool:
        """Whether the text that was added last is among the thoughts."""
        return self._progress.is_thinking

    def add(self, text: str) -> Iterator[Piece]:
        """Add the next part of the text. Yields the pieces that are certain now."""
        self._source.text += text
        while (piece := next(self._parsing)) is not None:
            yield piece

    def finish(self, *, is_cut: bool) -> Iterator[Piece]:
        """Yield the last pieces. `is_cut`: generation ended before the model ended the answer."""
        self._source.is_complete, self._source.is_cut = True, is_cut
        for piece in self._parsing:
            if piece is not None:
                yield piece


def parse_text(source: AnswerSource) -> Parsing:
    """Yield all text as it is."""
    while True:
        if length := len(source.text):
            yield Piece(PieceKind.TEXT, source.take(length), length)
        if source.is_complete:
            return
        yield None


def skip_blank(source: AnswerSource) -> Parsing:
    """Skip whitespace, up to the first character that is none."""
    while True:
        blank = len(source.text) - len(source.text.lstrip())
        if blank:
            yield source.skip(blank)
        if source.text or source.is_complete:
            return
        yield None


def _parse_thoughts(source: AnswerSource, progress: Progress, markers: ThoughtMarkers) -> Parsing:
    if not progress.is_thinking:
        found = yield from source.match(markers.opening)
        if found is None:
            return
        progress.is_thinking = True
        yield source.skip(found.end())
    yield from skip_blank(source)
    found = yield from source.until(markers.closing, PieceKind.THOUGHT)
    if found is not None:
        progress.is_thinking = False
        yield source.skip(found.end())
        yield from skip_blank(source)


def _parse_text_and_calls(source: AnswerSource, calls: CallParser, functions: Functions) -> Parsing:
    is_bare = calls.bare is not None and (yield from source.match(calls.bare)) is not None
    while True:
        begin = None if is_bare else (yield from source.until(calls.begin, PieceKind.TEXT))
        if begin is None and not is_bare:
            return
        source.mark()
        if begin is not None:
            yield source.skip(begin.end())
        is_call = yield from calls.parse(source, functions, begin)
        consumed = source.since_mark()
        if is_call:
            yield from skip_blank(source)
        elif consumed:
            yield Piece(PieceKind.TEXT, consumed)
        is_bare = False
