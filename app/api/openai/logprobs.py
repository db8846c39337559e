"""Log-probabilities in OpenAI's two formats: one for chat, an older one for completions. Pure."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from app.core.engine.messages import MadeToken, PromptDelta, TokenProbability, TokenText


class TopLogprob(BaseModel):
    """A token and how probable it was."""

    token: str = Field(description="The token's text; bytes that are no text are escaped, as in `\\xf0`.")
    bytes: list[Annotated[int, Field(ge=0, le=255)]] = Field(
        description="Its bytes; a character may be spread over several tokens."
    )
    # The bounds are for those that a client sends back; rounding may take one above 0.
    logprob: float = Field(ge=-10_000, le=1, description="The natural logarithm of its probability.")


class ChatTokenLogprob(TopLogprob):
    """A token of the answer, and what else was likely in its place."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens.")


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer, token by token."""

    content: list[ChatTokenLogprob] = Field(description="The tokens of the answer.")
    refusal: None = Field(None, description="Always null.")


class CompletionLogprobs(BaseModel):
    """The same, list by list."""

    tokens: list[str] = Field(description="The text of each token.")
    token_logprobs: list[float | None] = Field(
        description="The log-probability of each; null: that of the first token of a prompt."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The likeliest tokens in place of each, and it itself."
    )
    text_offset: list[int] = Field(description="Where in the text each begins.")

    def __add__(self, other: "CompletionLogprobs") -> "CompletionLogprobs":
        return CompletionLogprobs(
            tokens=self.tokens + other.tokens,
            token_logprobs=self.token_logprobs + other.token_logprobs,
            top_logprobs=self.top_logprobs + other.top_logprobs,
            text_offset=self.text_offset + other.text_offset,
        )


def chat_logprobs(tokens: Sequence[MadeToken] | None) -> ChatLogprobs | None:
    """The tokens' log-probabilities in chat's format; None where none were requested."""
    if tokens is None:
        return None
    content = [
        ChatTokenLogprob(**_top(token), top_logprobs=[TopLogprob(**_top(other)) for other in token.top])
        for token in tokens
    ]
    return ChatLogprobs(content=content)


class CompletionLogprobsWriter:
    """Writes log-probabilities in the format of completions, with text offsets that continue over chunks."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def write(self, tokens: Sequence[MadeToken] | None) -> CompletionLogprobs | None:
        """The log-probabilities of the next tokens; None where none were requested."""
        if tokens is None:
            return None
        return CompletionLogprobs(
            tokens=[_text(token, "bytes:") for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[
                {_text(other, "bytes:"): other.logprob for other in (*token.top, token)} for token in tokens
            ],
            text_offset=[self._advance(token) for token in tokens],
        )

    def write_prompt(self, prompt: PromptDelta, text: str) -> CompletionLogprobs:
        """The log-probabilities of a prompt, of which `text` is the text without what the tokenizer added."""
        first = bytes(prompt.first.bytes).decode(errors="replace")
        begin = CompletionLogprobs(
            tokens=[_text(prompt.first, "bytes:")],
            token_logprobs=[None],
            top_logprobs=[None],
            text_offset=[self._advance(prompt.first) if text.startswith(first) else 0],
        )
        rest = self.write(prompt.tokens)
        self._offset = len(text)
        return begin + rest if rest is not None else begin

    def _advance(self, token: TokenText) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(bytes(token.bytes)))
        return offset


def _top(token: TokenProbability) -> dict[str, object]:
    return {"token": _text(token), "bytes": token.bytes, "logprob": token.logprob}


def _text(token: TokenText, mark: str = "") -> str:
    raw = bytes(token.bytes)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in raw)
