"""Answers in Harmony, the format of gpt-oss: messages on channels, each with a header of special tokens.

Source: https://github.com/openai/harmony. `analysis` holds thoughts, `final` the answer, `commentary` calls
of functions, and text before them.
"""

import regex

from worker.inference.answers.calls import parse_arguments
from worker.inference.answers.parser import Progress, parse_text
from worker.inference.answers.source import AnswerSource, Parsing, Piece, PieceKind

_HEADER = regex.compile(
    r"\s*(?:<\|start\|>assistant)?(?P<before>[^<]*)<\|channel\|>\s*(?P<channel>\w+)(?P<after>[^<]*)"
    r"(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_FUNCTION = regex.compile(r"to=functions\.(?P<name>[\w.-]+)")
_OBJECT = regex.compile(r"\s*(?=\{)")
_END = regex.compile(r"<\|(?:end|return|call)\|>|(?=<\|start\|>)")
_SEPARATOR = "\n\n"


class HarmonyAnswer:
    """Answers of messages on channels."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Tokens that the parser has to see although they are special."""
        names = ("start", "channel", "constrain", "message", "end", "return", "call")
        return tuple(f"<|{name}|>" for name in names)

    @property
    def has_thoughts(self) -> bool:
        """True: `analysis` holds thoughts."""
        return True

    @property
    def inner_ends(self) -> tuple[str, ...]:
        """The end of a message that another one follows."""
        return ("<|end|>",)

    def is_thinking_after(self, prompt: str) -> bool:
        """False: an answer begins with the header of a message."""
        return False

    def may_think_after(self, prompt: str) -> bool:
        """True: each message says what it is."""
        return True

    def parse(self, source: AnswerSource, progress: Progress) -> Parsing:
        """Yield the pieces of an answer. Without functions nothing is a call."""
        written: set[PieceKind] = set()
        while True:
            source.mark()
            header = yield from source.match(_HEADER)
            if header is None:
                yield from parse_text(source)
                return
            function = _FUNCTION.search(header["before"] + header["after"])
            is_thought = header["channel"] == "analysis" and function is None
            progress.is_thinking = is_thought
            yield source.skip(header.end())
            if function and progress.functions:
                yield from _parse_call(source, function["name"])
            else:
                kind = PieceKind.THOUGHT if is_thought else PieceKind.TEXT
                if kind in written:
                    yield Piece(kind, _SEPARATOR)
                written.add(kind)
                end = yield from source.until(_END, kind)
                if end is not None:
                    yield source.skip(end.end())
            progress.is_thinking = False
            if source.is_complete and not source.text:
                return


def _parse_call(source: AnswerSource, name: str) -> Parsing:
    """Parse the arguments of a call, whose header was consumed since the source's mark."""
    found = yield from source.match(_OBJECT)
    if found is not None:
        yield Piece(PieceKind.CALL, name)
        yield source.skip(found.end())
        if (yield from parse_arguments(source)):
            yield Piece(PieceKind.CALL_END)
            end = yield from source.match(_END)
            if end is not None:
                yield source.skip(end.end())
            return
    yield Piece(PieceKind.TEXT, source.since_mark())
    yield from source.until(_END, PieceKind.TEXT)
