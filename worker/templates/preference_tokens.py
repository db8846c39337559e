"""Encodes comparisons and labelled answers as token ids and labels, each answer as supervised training does.

The prompt with an answer is encoded as one example, with the loss on the answer alone. What its two examples
begin with, up to the first token that is learned, is the prompt of a comparison.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import AnswerComparison, LabelledAnswer, Passage, Preference, Row, join
from app.core.errors import InvalidRequest
from worker.models.files import vocabulary
from worker.processes.parallel_map import Work, map_in_order
from worker.templates.token_rows import (
    IGNORED,
    SAMPLES,
    EncodedRow,
    FormattedRows,
    Sample,
    TokenRow,
    check_any_left,
    count_learned,
    encode_row,
    naming_line,
)


@dataclass(frozen=True)
class LabelledTokens:
    """A prompt, an answer to it, and whether the answer is a good one.

    `completion_labels` has a token's own id where the loss counts it, and IGNORED elsewhere: for the result
    of a function, say. Nothing is learned of the prompt.
    """

    line: int
    prompt_ids: list[int]
    completion_ids: list[int]
    completion_labels: list[int]
    label: bool

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss counts."""
        return count_learned(self.completion_labels)

    @property
    def example(self) -> TokenRow:
        """The prompt and the answer as one row of tokens."""
        return _join(self.line, self.prompt_ids, self.completion_ids, self.completion_labels)


@dataclass(frozen=True)
class ComparisonTokens:
    """A prompt, an answer that is preferred and one that is rejected.

    The labels have a token's own id where the loss counts it, and IGNORED elsewhere: for the result of a
    function, say. Nothing is learned of the prompt.
    """

    line: int
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_labels: list[int]
    rejected_labels: list[int]

    @property
    def tokens(self) -> int:
        """How many tokens the model reads: the prompt twice, once before each answer."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss counts."""
        return count_learned(self.chosen_labels) + count_learned(self.rejected_labels)

    @property
    def chosen(self) -> TokenRow:
        """The prompt and the chosen answer as one row of tokens."""
        return _join(self.line, self.prompt_ids, self.chosen_ids, self.chosen_labels)

    @property
    def rejected(self) -> TokenRow:
        """The prompt and the rejected answer as one row of tokens."""
        return _join(self.line, self.prompt_ids, self.rejected_ids, self.rejected_labels)

    def labelled(self) -> tuple[LabelledTokens, LabelledTokens]:
        """The comparison as two labelled answers: the chosen one is good, the rejected one is not."""
        return (
            LabelledTokens(self.line, self.prompt_ids, self.chosen_ids, self.chosen_labels, True),
            LabelledTokens(self.line, self.prompt_ids, self.rejected_ids, self.rejected_labels, False),
        )


PreferenceTokens = ComparisonTokens | LabelledTokens


@dataclass(frozen=True)
class EncodedPreference:
    """A preference as tokens, not truncated, and each of its answers after the prompt as an encoded row."""

    tokens: PreferenceTokens
    answers: tuple[EncodedRow, ...]


def format_preferences(
    rows: Iterable[tuple[int, Row]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    moment: datetime | None = None,
    embedding_rows: int | None = None,
    work: Work | None = None,
) -> FormattedRows[PreferenceTokens]:
    """Encode comparisons and labelled answers; the prompt with each answer is truncated to `max_length`.

    A row is left out where an answer has no token to learn within that length, or where both answers of a
    comparison are the same up to there. `moment`, `embedding_rows` and `work` are those of `format_rows`.

    Raises InvalidRequest where the chat template refuses a row or can't be masked, or the row is no
    preference, TemplateMismatch where it renders prompts otherwise for serving, TemplateExceedsLimits,
    NothingToLearn.
    """
    formatted: FormattedRows[PreferenceTokens] = FormattedRows()
    encode = partial(_encode_numbered, tokenizer=tokenizer, moment=moment or datetime.now(UTC))
    for (line, row), encoded in map_in_order(encode, rows, work):
        with naming_line(line):
            for answer in encoded.answers:
                if embedding_rows is not None:
                    vocabulary.check_ids(answer.input_ids[:max_length], tokenizer, embedding_rows)
        formatted.note(line, _strongest(encoded.answers))
        tokens = truncate(encoded.tokens, max_length)
        if tokens != encoded.tokens:
            formatted.cut_lines.append(line)
        if not is_learned(tokens):
            formatted.dropped_lines.append(line)
            continue
        formatted.rows.append(tokens)
        if len(formatted.samples) < SAMPLES:
            example = tokens.chosen if isinstance(tokens, ComparisonTokens) else tokens.example
            formatted.samples.append(Sample(row, example))
    check_any_left(formatted, max_length)
    return formatted


def _encode_numbered(
    numbered: tuple[int, Row], tokenizer: PreTrainedTokenizerBase, *, moment: datetime
) -> EncodedPreference:
    line, row = numbered
    with naming_line(line):
        return encode_preference(line, row, tokenizer, moment=moment)


def encode_preference(
    line: int, row: Row, tokenizer: PreTrainedTokenizerBase, *, moment: datetime | None = None
) -> EncodedPreference:
    """One row, not truncated. Raises InvalidRequest, TemplateMismatch, TemplateExceedsLimits."""
    moment = moment or datetime.now(UTC)
    match row:
        case AnswerComparison(_, chosen_answer, rejected_answer, _):
            chosen = _encode_answer(row, chosen_answer, tokenizer, moment)
            rejected = _encode_answer(row, rejected_answer, tokenizer, moment)
            border = _find_border(chosen, rejected)
            tokens: PreferenceTokens = ComparisonTokens(
                line,
                chosen.input_ids[:border],
                chosen.input_ids[border:],
                rejected.input_ids[border:],
                chosen.labels[border:],
                rejected.labels[border:],
            )
            return EncodedPreference(tokens, (chosen, rejected))
        case LabelledAnswer(_, completion, label, _):
            answer = _encode_answer(row, completion, tokenizer, moment)
            border = _find_border(answer)
            tokens = LabelledTokens(
                line,
                answer.input_ids[:border],
                answer.input_ids[border:],
                answer.labels[border:],
                label,
            )
            return EncodedPreference(tokens, (answer,))
        case _:
            raise InvalidRequest(
                "the row is neither a comparison nor a labelled answer.",
                hint="Set the job's method to sft, which learns single answers.",
            )


def truncate(row: PreferenceTokens, max_length: int) -> PreferenceTokens:
    """The row with its prompt, and its prompt with each answer, cut to `max_length` tokens."""
    prompt_ids = row.prompt_ids[:max_length]
    left = max_length - len(prompt_ids)
    if isinstance(row, LabelledTokens):
        return replace(
            row,
            prompt_ids=prompt_ids,
            completion_ids=row.completion_ids[:left],
            completion_labels=row.completion_labels[:left],
        )
    return replace(
        row,
        prompt_ids=prompt_ids,
        chosen_ids=row.chosen_ids[:left],
        rejected_ids=row.rejected_ids[:left],
        chosen_labels=row.chosen_labels[:left],
        rejected_labels=row.rejected_labels[:left],
    )


def is_learned(row: PreferenceTokens) -> bool:
    """Whether there is something to learn from each answer, and the answers of a comparison differ."""
    if isinstance(row, LabelledTokens):
        return row.trained_tokens > 0
    has_both = count_learned(row.chosen_labels) > 0 and count_learned(row.rejected_labels) > 0
    return has_both and row.chosen_ids != row.rejected_ids


def _encode_answer(
    row: Preference, answer: Passage, tokenizer: PreTrainedTokenizerBase, moment: datetime
) -> EncodedRow:
    """The prompt and an answer as an example of which only the answer is learned."""
    prompt = row.prompt
    if not isinstance(prompt, str):
        # The answers of earlier turns are read, and neither preferred nor rejected.
        prompt = tuple(replace(turn, weight=0) if turn.role == "assistant" else turn for turn in prompt)
    return encode_row(join(prompt, answer, row.tools), tokenizer, assistant_only=True, moment=moment)


def _find_border(*answers: EncodedRow) -> int:
    """How many tokens belong to the prompt: all begin with them, and nothing of them is learned."""
    first, *others = answers
    border = min(_count_ignored(answer.labels) for answer in answers)
    for other in others:
        pairs = zip(first.input_ids[:border], other.input_ids[:border], strict=False)
        border = next((place for place, (one, another) in enumerate(pairs) if one != another), border)
    return border


def _count_ignored(labels: Sequence[int]) -> int:
    """How many labels the first one that the loss counts has before it."""
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def _join(line: int, prompt_ids: list[int], answer_ids: list[int], labels: list[int]) -> TokenRow:
    return TokenRow(line, prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + labels)


def _strongest(answers: Sequence[EncodedRow]) -> EncodedRow:
    """One encoded row with what is notable of any of them."""
    first = answers[0]
    return replace(
        first,
        omissions=next((one.omissions for one in answers if one.omissions), ()),
        has_empty_thought=any(one.has_empty_thought for one in answers),
        has_plain_functions=any(one.has_plain_functions for one in answers),
    )
