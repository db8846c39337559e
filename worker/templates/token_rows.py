"""Encodes rows as token ids and labels. Knows no model.

A label is the token's own id where the loss counts it and IGNORED elsewhere, at the token's own position; the
model shifts labels. The first token of a row has no context to be predicted from, so its label is IGNORED.
"""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Generic, Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import AnswerComparison, Completion, Conversation, LabelledAnswer, PlainText, Row
from app.core.errors import InvalidRequest
from app.core.errors.jobs import NothingToLearn, TemplateExceedsLimits, TemplateMismatch
from worker.models.files import vocabulary
from worker.processes.parallel_map import Work, map_in_order
from worker.templates.continuations import encode_completion, encode_with_border, encode_with_spans
from worker.templates.omissions import Omission, find_omissions
from worker.templates.renderer import (
    DatedRenderer,
    control_ends,
    encode_plain,
    end_of_turn,
    form_of,
    writes_plain_functions,
)
from worker.templates.rendering.process import Span
from worker.templates.tools.messages import adapt, uses_functions
from worker.templates.training_text import TrainingText, render_for_training
from worker.templates.turns import find_turns

IGNORED = -100
SAMPLES = 4


@dataclass(frozen=True)
class EncodedRow:
    """A row's token ids and labels, and what the chat template left out of it or added to it.

    `has_plain_functions`: its functions or calls are written as text, as the template has no place for them.
    """

    input_ids: list[int]
    labels: list[int]
    omissions: tuple[Omission, ...] = ()
    has_empty_thought: bool = False
    has_plain_functions: bool = False


@dataclass(frozen=True)
class TokenRow:
    """One row: token ids, a label for each, and the row's line in its file."""

    line: int
    input_ids: list[int]
    labels: list[int]

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss counts."""
        return count_learned(self.labels)


@dataclass(frozen=True)
class Sample:
    """A row of the dataset and its tokens; of a comparison, those of the prompt and the chosen answer."""

    row: Row
    tokens: TokenRow


class TokenizedRow(Protocol):
    """A row of any kind as tokens: what is counted of it."""

    @property
    def line(self) -> int:
        """The row's line in its file."""

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss counts."""


AnyTokenRow = TypeVar("AnyTokenRow", bound=TokenizedRow)


@dataclass
class FormattedRows(Generic[AnyTokenRow]):
    """A dataset as tokens, a few samples, and the lines of rows that were truncated, dropped or changed.

    Of each row that the chat template left something out of, `omissions` has the first.
    """

    rows: list[AnyTokenRow] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    cut_lines: list[int] = field(default_factory=list)
    dropped_lines: list[int] = field(default_factory=list)
    omissions: list[tuple[int, Omission]] = field(default_factory=list)
    empty_thought_lines: list[int] = field(default_factory=list)
    plain_function_lines: list[int] = field(default_factory=list)

    def note(self, line: int, row: EncodedRow) -> None:
        """Note what the chat template made of a row."""
        if row.omissions:
            self.omissions.append((line, row.omissions[0]))
        if row.has_empty_thought:
            self.empty_thought_lines.append(line)
        if row.has_plain_functions:
            self.plain_function_lines.append(line)

    @property
    def tokens(self) -> int:
        """How many tokens all rows have."""
        return sum(row.tokens for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss counts in all rows."""
        return sum(row.trained_tokens for row in self.rows)


def format_rows(
    rows: Iterable[tuple[int, Row]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool,
    max_length: int,
    moment: datetime | None = None,
    embedding_rows: int | None = None,
    work: Work | None = None,
) -> FormattedRows[TokenRow]:
    """Encode every row, truncated to `max_length`; rows without a token to learn are left out.

    Chat templates that print a date print the moment's, the present by default. A token that has no row among
    the base model's `embedding_rows` is refused. With `work` several processes encode the rows where one
    would take long.

    Raises InvalidRequest where the chat template refuses a row or can't be masked, or the row is no example,
    TemplateMismatch where it renders prompts otherwise for serving, TemplateExceedsLimits, NothingToLearn.
    """
    formatted: FormattedRows[TokenRow] = FormattedRows()
    encode = partial(
        _encode_numbered,
        tokenizer=tokenizer,
        assistant_only=assistant_only,
        moment=moment or datetime.now(UTC),
    )
    for (line, row), encoded in map_in_order(encode, rows, work):
        with naming_line(line):
            if embedding_rows is not None:
                vocabulary.check_ids(encoded.input_ids[:max_length], tokenizer, embedding_rows)
        formatted.note(line, encoded)
        if len(encoded.input_ids) > max_length:
            formatted.cut_lines.append(line)
        token_row = TokenRow(line, encoded.input_ids[:max_length], encoded.labels[:max_length])
        if token_row.trained_tokens:
            formatted.rows.append(token_row)
            if len(formatted.samples) < SAMPLES:
                formatted.samples.append(Sample(row, token_row))
        else:
            formatted.dropped_lines.append(line)
    check_any_left(formatted, max_length)
    return formatted


@contextmanager
def naming_line(line: int) -> Iterator[None]:
    """Put a row's line before the message of an error that the row causes."""
    try:
        yield
    except (InvalidRequest, TemplateMismatch, TemplateExceedsLimits) as error:
        raise type(error)(f"Line {line}: {error.message}", hint=error.hint) from error


def check_any_left(formatted: FormattedRows[AnyTokenRow], max_length: int) -> None:
    """Raise NothingToLearn where every row was left out."""
    if not formatted.rows:
        count = len(formatted.dropped_lines)
        raise NothingToLearn(
            f"None of the {count} rows has a token to learn from within {max_length} tokens.",
            hint="Raise training.max_seq_length, or shorten the prompts.",
        )


def _encode_numbered(
    numbered: tuple[int, Row], tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool, moment: datetime
) -> EncodedRow:
    line, row = numbered
    with naming_line(line):
        return encode_row(row, tokenizer, assistant_only=assistant_only, moment=moment)


def encode_row(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool, moment: datetime | None = None
) -> EncodedRow:
    """One row, not truncated. Raises InvalidRequest, TemplateMismatch, TemplateExceedsLimits."""
    match row:
        case Conversation():
            renderer = DatedRenderer(tokenizer, moment or datetime.now(UTC), row.tools)
            encoded = _encode_conversation(_adapt(row, tokenizer), renderer, assistant_only)
        case Completion():
            encoded = _encode_completion(row, tokenizer)
        case PlainText():
            input_ids = _end(encode_plain(tokenizer, row.text), tokenizer)
            encoded = EncodedRow(input_ids, list(input_ids))
        case AnswerComparison() | LabelledAnswer():
            raise InvalidRequest(
                "the row compares or labels answers, and supervised training learns single ones.",
                hint="Set the job's method: dpo, orpo or kto.",
            )
    if encoded.labels:
        encoded.labels[0] = IGNORED
    return encoded


def count_learned(labels: Sequence[int]) -> int:
    """Returns how many labels the loss counts."""
    return len(labels) - labels.count(IGNORED)


def hold_out(
    rows: Sequence[AnyTokenRow], share: float, seed: int
) -> tuple[list[AnyTokenRow], list[AnyTokenRow]]:
    """Split into (rows to train on, rows to evaluate on), both in the file's order; reproducible by the seed.

    Raises NothingToLearn where there are too few rows to split.
    """
    if not share:
        return list(rows), []
    if len(rows) < 2:
        raise NothingToLearn(
            "There is one row, too few to hold any out.", hint="Set training.validation_split to 0."
        )
    count = min(max(1, round(len(rows) * share)), len(rows) - 1)
    held_out = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in held_out]
    return train, [row for index, row in enumerate(rows) if index in held_out]


def _adapt(row: Conversation, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """The row with the messages that are rendered, so that masks are found by the same ones."""
    if uses_functions(row.messages, row.tools) or any(message.reasoning for message in row.messages):
        return replace(row, messages=adapt(row.messages, form_of(tokenizer)))
    return row


def _encode_conversation(row: Conversation, renderer: DatedRenderer, assistant_only: bool) -> EncodedRow:
    tokenizer = renderer.tokenizer
    has_functions = uses_functions(row.messages, row.tools)
    rendered = render_for_training(row, renderer)
    omissions = find_omissions(row, rendered, renderer)
    # A question is learned with the whole row, or not at all: a mask of its own has only the answers.
    assistant_only |= any(message.weight == 0 for message in row.messages if message.role != "assistant")
    # The results of functions are not the model's to learn, nor are the descriptions of functions.
    assistant_only |= has_functions
    unweighted = any(message.weight == 0 for message in row.messages if message.role == "assistant")
    if assistant_only or unweighted:
        input_ids, labels = _mask_turns(row, rendered, renderer, assistant_only)
    else:
        input_ids = _end_turn(encode_with_border(tokenizer, rendered.text, rendered.border), tokenizer)
        labels = list(input_ids)
    is_plain = has_functions and writes_plain_functions(tokenizer)
    return EncodedRow(input_ids, labels, omissions, rendered.has_empty_thought, is_plain)


def _mask_turns(
    row: Conversation, rendered: TrainingText, renderer: DatedRenderer, assistant_only: bool
) -> tuple[list[int], list[int]]:
    """The token ids of a conversation, and labels of which only some turns count, or all others."""
    turns = find_turns(row, rendered, renderer)
    input_ids, token_spans = encode_with_spans(renderer.tokenizer, rendered.text, rendered.border)
    learned = _mask(input_ids, token_spans, [span for turn in turns if turn.weight for span in turn.spans])
    if not assistant_only:
        skipped = _mask(
            input_ids, token_spans, [span for turn in turns if not turn.weight for span in turn.spans]
        )
        learned = [
            token if skip == IGNORED else IGNORED for token, skip in zip(input_ids, skipped, strict=True)
        ]
    ended = _end_turn(input_ids, renderer.tokenizer)
    if row.messages[-1].tool_calls and not rendered.text.rstrip().endswith(control_ends(renderer.tokenizer)):
        ended = _end(input_ids, renderer.tokenizer)  # DeepSeek-V3's template ends no turn of calls
    last_is_learned = row.messages[-1].weight != 0
    return ended, learned + [token if last_is_learned else IGNORED for token in ended[len(input_ids) :]]


def _encode_completion(row: Completion, tokenizer: PreTrainedTokenizerBase) -> EncodedRow:
    prompt_ids, completion_ids = encode_completion(tokenizer, row.prompt, row.completion)
    input_ids = _end(prompt_ids + completion_ids, tokenizer)
    return EncodedRow(input_ids, [IGNORED] * len(prompt_ids) + input_ids[len(prompt_ids) :])


def _end_turn(input_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids with an end token where the template writes no end of turn."""
    return input_ids if end_of_turn(tokenizer) else _end(input_ids, tokenizer)


def _end(input_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids with one end token at their end, without which the model never learns to stop."""
    end = tokenizer.eos_token_id
    return input_ids if end is None or input_ids[-1:] == [end] else [*input_ids, end]


def _mask(input_ids: list[int], token_spans: list[Span], spans: list[Span]) -> list[int]:
    """The ids of tokens that overlap one of the spans, IGNORED for the others."""
    starts, ends = [start for start, _end in token_spans], [end for _start, end in token_spans]
    masked = [IGNORED] * len(input_ids)
    for start, end in spans:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        masked[first:last] = input_ids[first:last]
    return masked
