"""The rows of the final evaluation: drawn from those that were held out, each with prompt and answer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import read_rows_at
from worker.processes.reports import TrainingRequest
from worker.templates.token_rows import TokenRow, count_learned
from worker.training.samples.prompts import AnswerDecoder, SamplePrompt, read_prompt

# For each row that is wanted so many are drawn: some have prompts that are too long.
_DRAWN = 5


@dataclass(frozen=True)
class Reference:
    """A row that was held out, with its line in the dataset; of a conversation its last answer."""

    line: int
    prompt: SamplePrompt
    answer_ids: list[int]


def choose_references(
    request: TrainingRequest,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenRow],
    text: AnswerDecoder,
    *,
    count: int,
    max_tokens: int,
) -> list[Reference]:
    """Up to `count` rows in the dataset's order, drawn by the job's seed.

    Rows whose prompt has more than `max_tokens` tokens, and those whose answer the job does not learn from or
    has cut off, are left out.
    """
    draw = random.Random(request.spec.training.seed)
    drawn = draw.sample(held_out, min(len(held_out), _DRAWN * count))
    found = _read(request, tokenizer, {row.line: row for row in drawn}, text)
    usable = [found[row.line] for row in drawn if row.line in found]
    chosen = [one for one in usable if len(one.prompt.token_ids) <= max_tokens][:count]
    return sorted(chosen, key=lambda one: one.line)


def _read(
    request: TrainingRequest,
    tokenizer: PreTrainedTokenizerBase,
    wanted: dict[int, TokenRow],
    text: AnswerDecoder,
) -> dict[int, Reference]:
    """Those of the wanted rows that have a prompt and an answer to learn, by line."""
    found = {}
    with (request.validation_dataset or request.dataset).open("rb") as lines:
        for line, row in read_rows_at(lines, wanted):
            tokens = wanted[line]
            prompt = read_prompt(row, tokens, tokenizer, text, request.submitted_at)
            if prompt is None:
                continue
            start = len(prompt.token_ids)
            learned = count_learned(tokens.labels[start:])
            # Around an answer that is not learned, the template's marks may be.
            if 2 * learned > len(tokens.labels) - start:
                found[line] = Reference(line, prompt, tokens.input_ids[start:])
    return found
