"""Makes replies of the tokens of one answer: plain text, or thoughts, text and calls apart."""

import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.core.chat.tools import FunctionTool
from app.core.engine.messages import Delta, MadeToken, ReasoningDelta, TokenDelta, ToolCallDelta
from worker.inference.answers.parser import AnswerFormat, AnswerParser
from worker.inference.answers.source import Piece, PieceKind
from worker.inference.sampling.text_stream import Decode, Detokenizer, StopStrings, TokenBuffer

_ID_LETTERS = string.ascii_letters + string.digits
# Mistral's templates refuse ids of another length.
_ID_LENGTH = 9


@dataclass(frozen=True)
class ParsedFormat:
    """How to parse an answer. `functions`: those it may call; `is_parallel`: more than one call."""

    format: AnswerFormat
    functions: Mapping[str, FunctionTool] = field(default_factory=dict)
    is_parallel: bool = True
    # Whether the prompt has opened the thoughts.
    is_thinking: bool = False
    # Special tokens that the parser has to see, by id.
    markers: Mapping[int, str] = field(default_factory=dict)


class AnswerText(Protocol):
    """The text of one answer so far."""

    # Whether the answer ends here, since a stop string was found or no further call is wanted.
    is_over: bool
    has_calls: bool
    reasoning_token_count: int

    def add(self, token_id: int, made: MadeToken | None) -> Sequence[Delta]:
        """Add a token. Returns what may be sent now."""

    def finish(self, *, is_cut: bool) -> Sequence[Delta]:
        """Returns what was held back. `is_cut`: generation ended before the model ended the answer."""


class PlainAnswer:
    """Text that is sent as it is, up to a stop string."""

    has_calls = False
    reasoning_token_count = 0

    def __init__(self, decode: Decode, context_ids: Sequence[int], stops: Sequence[str]) -> None:
        self.is_over = False
        self._detokenizer = Detokenizer(decode, context_ids)
        self._stops = StopStrings(stops)
        self._tokens: TokenBuffer[MadeToken] = TokenBuffer()

    def add(self, token_id: int, made: MadeToken | None) -> Sequence[Delta]:
        """Add a token. Returns the text that may be sent now."""
        new = self._detokenizer.add(token_id)
        if made is not None:
            self._tokens.add(made)
        self._tokens.add_text(len(new))
        return self._send(self._stops.add(new), is_last=False)

    def finish(self, *, is_cut: bool) -> Sequence[Delta]:
        """Returns the text that was held back."""
        if self.is_over:
            return ()
        text = self._stops.add(self._detokenizer.finish())
        return self._send(text if self._stops.found else text + self._stops.flush(), is_last=True)

    def _send(self, text: str, *, is_last: bool) -> Sequence[Delta]:
        """The text with the tokens that it comes from. Those of a stop string are not sent."""
        self.is_over = self._stops.found
        tokens = self._tokens.release(len(text), everything=is_last and not self.is_over)
        return (TokenDelta(text=text, tokens=tokens or None),) if text or tokens else ()


class ParsedAnswer:
    """Thoughts, text and calls, which a parser tells apart. Stop strings count in the text alone."""

    def __init__(self, decode: Decode, parsed: ParsedFormat, stops: Sequence[str]) -> None:
        self.is_over = False
        self.has_calls = False
        self.reasoning_token_count = 0
        self._decode = decode
        self._parsed = parsed
        self._parser = AnswerParser(parsed.format, parsed.functions, is_thinking=parsed.is_thinking)
        self._detokenizer = Detokenizer(decode)
        # Tokens by their place in all that was generated, and those of text that may begin a stop string.
        self._tokens: TokenBuffer[MadeToken] = TokenBuffer()
        self._text_tokens: TokenBuffer[MadeToken] = TokenBuffer()
        self._stops = StopStrings(stops)
        self._call_count = 0
        self._withdrawn_count = 0

    def add(self, token_id: int, made: MadeToken | None) -> Sequence[Delta]:
        """Add a token. Returns what may be sent now."""
        marker = self._parsed.markers.get(token_id)
        rest = ""
        if marker is None:
            new = self._detokenizer.add(token_id)
        else:
            rest, new = self._detokenizer.finish(), marker
            self._detokenizer = Detokenizer(self._decode, (token_id,))
        self._tokens.add_text(len(rest))
        if made is not None:
            self._tokens.add(made)
        self._tokens.add_text(len(new))
        was_thinking = self._parser.is_thinking
        deltas = self._read(self._parser.add(rest + new))
        self.reasoning_token_count += was_thinking or self._parser.is_thinking
        return deltas

    def finish(self, *, is_cut: bool) -> Sequence[Delta]:
        """Returns what was held back."""
        if self.is_over:
            return ()
        rest = self._detokenizer.finish()
        self._tokens.add_text(len(rest))
        deltas = [*self._read(self._parser.add(rest)), *self._read(self._parser.finish(is_cut=is_cut))]
        if not self.is_over:
            left = self._stops.flush()
            tokens = self._text_tokens.release(len(left), everything=True)
            if left or tokens:
                deltas.append(TokenDelta(text=left, tokens=tokens or None))
        return deltas

    def _read(self, pieces: Iterable[Piece]) -> list[Delta]:
        deltas: list[Delta] = []
        for piece in pieces:
            placed = self._tokens.take(piece.length)
            if (delta := self._delta(piece, placed)) is not None:
                deltas.append(delta)
            if self.is_over:
                break
        return deltas

    def _delta(self, piece: Piece, placed: list[tuple[int, MadeToken]]) -> Delta | None:
        tokens = [token for _, token in placed] or None
        match piece.kind:
            case PieceKind.TEXT:
                return self._text(piece.text, placed)
            case PieceKind.THOUGHT:
                return ReasoningDelta(text=piece.text, tokens=tokens)
            case PieceKind.CALL:
                self._call_count += 1
                self.has_calls = True
                return ToolCallDelta(index=self._call_count - 1, id=_new_id(), name=piece.text)
            case PieceKind.ARGUMENTS:
                return ToolCallDelta(index=self._call_count - 1, arguments=piece.text, tokens=tokens)
            case PieceKind.CALL_END:
                self.is_over = not self._parsed.is_parallel
            case PieceKind.WITHDRAWN:
                self._withdrawn_count += 1
                self.has_calls = self._call_count > self._withdrawn_count
                return ToolCallDelta(index=self._call_count - 1, is_withdrawn=True)
        return None

    def _text(self, text: str, placed: list[tuple[int, MadeToken]]) -> Delta | None:
        for offset, token in placed:
            self._text_tokens.add(token, offset)
        self._text_tokens.add_text(len(text))
        sent = self._stops.add(text)
        self.is_over = self._stops.found
        tokens = self._text_tokens.release(len(sent), everything=False)
        return TokenDelta(text=sent, tokens=tokens or None) if sent or tokens else None


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
