"""The prompts of a job's sample answers, as text and as tokens. Knows no model."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import (
    Completion,
    Conversation,
    Message,
    PlainText,
    Row,
    as_example,
    read_rows,
)
from app.core.errors import InvalidRequest
from app.core.errors.jobs import TemplateExceedsLimits
from worker.planning.sample_answers import SAMPLED_ROWS
from worker.processes.reports import TrainingRequest
from worker.templates.prompt_check import render_prompt
from worker.templates.renderer import encode_plain, encode_rendered, render
from worker.templates.token_rows import TokenRow
from worker.training.rows import has_conversations

MAX_PROMPT_TOKENS = 1024
# Of the rows to evaluate on, so many are looked at: some have prompts that are too long.
_ROWS_READ = 100
_MAX_TEXT_PROMPT_TOKENS = 64
_MAX_LETTERS = 2000
# All but the tab and the end of a line.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt: its text, its tokens, and the text that the dataset has after it, where it is from there."""

    text: str
    token_ids: list[int]
    expected: str | None = None


@dataclass(frozen=True)
class AnswerDecoder:
    """Turns the tokens of an answer into text: up to the first of `end_ids`, with its other markers."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, cut to what an event may hold."""
        end = next((place for place, one in enumerate(token_ids) if one in self.end_ids), len(token_ids))
        return shorten(str(self.tokenizer.decode(list(token_ids[:end]), skip_special_tokens=False)).strip())


def find_prompts(
    request: TrainingRequest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenRow],
    text: AnswerDecoder,
    *,
    max_tokens: int,
) -> list[SamplePrompt]:
    """The prompts that the job names, or else those of the first rows to evaluate on.

    Prompts of more than `max_tokens` tokens are left out. Raises InvalidRequest where the chat template
    refuses a prompt.
    """
    named = request.spec.training.sample_prompts
    if named == "none":
        return []
    if named == "auto":
        max_tokens = min(max_tokens, MAX_PROMPT_TOKENS)
        return list(islice(_of_rows(request, tokenizer, held_out, text, max_tokens), SAMPLED_ROWS))
    prompts = [SamplePrompt(shorten(one), _encode(one, request, tokenizer)) for one in named]
    return [one for one in prompts if 0 < len(one.token_ids) <= max_tokens]


def shorten(text: str) -> str:
    """The text as an event may hold it: not too long, and without control characters.

    PostgreSQL refuses NUL in JSON, and others steer the terminal of whoever reads the log.
    """
    clean = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
    return clean if len(clean) <= _MAX_LETTERS else clean[: _MAX_LETTERS - 1] + "…"


def _encode(prompt: str, request: TrainingRequest, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt as rows of the job's dataset have it: a user's message, or plain text."""
    if not has_conversations(request):
        return encode_plain(tokenizer, prompt)
    messages = [Message("user", prompt)]
    rendered = render(tokenizer, messages, add_generation_prompt=True, moment=request.submitted_at)
    return encode_rendered(tokenizer, rendered)


def _of_rows(
    request: TrainingRequest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenRow],
    text: AnswerDecoder,
    max_tokens: int,
) -> Iterator[SamplePrompt]:
    wanted = {row.line: row for row in held_out[:_ROWS_READ]}
    if not wanted:
        return
    left = len(wanted)
    with (request.validation_dataset or request.dataset).open("rb") as lines:
        for line, row in read_rows(lines):
            if line not in wanted:
                continue
            prompt = read_prompt(row, wanted[line], tokenizer, text, request.submitted_at)
            if prompt is not None and len(prompt.token_ids) <= max_tokens:
                yield prompt
            left -= 1
            if not left:
                return


def read_prompt(
    row: Row,
    tokens: TokenRow,
    tokenizer: PreTrainedTokenizerBase,
    text: AnswerDecoder,
    moment: datetime,
) -> SamplePrompt | None:
    """The prompt and the answer of a row; None where the row has none, or is cut before its answer."""
    row = as_example(row)
    if isinstance(row, PlainText):
        prompt_ids = tokens.input_ids[: min(len(tokens.input_ids) // 2, _MAX_TEXT_PROMPT_TOKENS)]
        description = str(tokenizer.decode(prompt_ids, skip_special_tokens=True))
    else:
        try:
            prompt_ids = render_prompt(row, tokenizer, moment=moment)
        except (InvalidRequest, TemplateExceedsLimits):
            return None
        description = _describe(row)
    expected_ids = tokens.input_ids[len(prompt_ids) :]
    if not prompt_ids or not expected_ids or tokens.input_ids[: len(prompt_ids)] != prompt_ids:
        return None
    return SamplePrompt(shorten(description), prompt_ids, text.decode(expected_ids))


def _describe(row: Conversation | Completion) -> str:
    if isinstance(row, Completion):
        return row.prompt
    before = row.messages[:-1]
    if len(before) == 1:
        return before[0].content
    return "\n".join(f"{message.role}: {_content_of(message)}" for message in before)


def _content_of(message: Message) -> str:
    """The text of a message, then its calls of functions, each as `name(arguments)`."""
    calls = [f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in message.tool_calls]
    return " ".join(part for part in (message.content, *calls) if part)
