"""The prompts on which an export is compared with the live adapter: training rows and a few fixed prompts."""

from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Message, read_rows
from app.core.errors import InvalidRequest
from worker.templates.prompt_check import render_prompt
from worker.templates.renderer import encode_plain, encode_rendered, render

_ROWS = 4
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
