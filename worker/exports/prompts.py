"""The texts that an export is tried with: prompts for its comparison, rows to measure it on.

Prompts are those of a few training rows and a few fixed ones.
"""

from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Completion, Conversation, Message, Row, as_example, read_rows
from app.core.errors import InvalidRequest
from worker.templates.prompt_check import render_prompt
from worker.templates.renderer import encode_plain, encode_rendered, render

_ROWS = 4
_MEASURED_TOKENS = 8192
_MEASURED_TOKENS_A_ROW = 512
_FIXED = (
    "What can you help me with?",
    "List three numbers and say why you chose them.",
    "Write one sentence about the sea.",
    "def add(a, b):",
)


def collect_prompts(tokenizer: PreTrainedTokenizerBase, dataset: Path | None) -> list[list[int]]:
    """The token ids of each prompt, rendered as in serving."""
    fixed = [_render_fixed(tokenizer, text) for text in _FIXED]
    found = [*(_read_rows(tokenizer, dataset) if dataset else []), *fixed]
    return [prompt for prompt in found if prompt]


def collect_rows(
    tokenizer: PreTrainedTokenizerBase, dataset: Path | None, *, max_tokens: int = _MEASURED_TOKENS
) -> list[list[int]]:
    """Whole training rows as token ids, cut to 512 tokens, until they have `max_tokens` tokens together."""
    if dataset is None:
        return []
    found: list[list[int]] = []
    with dataset.open("rb") as lines:
        for _line, row in read_rows(lines):
            try:
                ids = _encode_row(tokenizer, row)[:_MEASURED_TOKENS_A_ROW]
            except InvalidRequest:
                continue
            found += [ids] if ids else []
            if sum(len(row) for row in found) >= max_tokens:
                break
    return found


def _encode_row(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
    match as_example(row):
        case Conversation(messages, tools):
            text = render(tokenizer, messages, add_generation_prompt=False, tools=tools)
            return encode_rendered(tokenizer, text)
        case Completion(prompt, completion):
            return encode_plain(tokenizer, prompt + completion)
        case plain:
            return encode_plain(tokenizer, plain.text)


def _read_rows(tokenizer: PreTrainedTokenizerBase, dataset: Path) -> list[list[int]]:
    prompts = []
    with dataset.open("rb") as lines:
        for _line, row in islice(read_rows(lines), _ROWS):
            try:
                prompts.append(render_prompt(row, tokenizer))
            except InvalidRequest:
                continue  # training leaves out rows that the template refuses, too
    return prompts


def _render_fixed(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    try:
        rendered = render(tokenizer, [Message("user", text)], add_generation_prompt=True)
    except InvalidRequest:
        return encode_plain(tokenizer, text)
    return encode_rendered(tokenizer, rendered)
