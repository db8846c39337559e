"""Reads a job's datasets as the job would: rendered, masked, truncated, split.

Of large ones, and of rows that take long to render, every n-th row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation, as_example
from app.core.engine.preflight import DatasetRef, PreflightRequest
from app.core.errors import InvalidRequest
from app.core.errors.jobs import NothingToLearn, TemplateExceedsLimits, TemplateMismatch
from app.core.specs.job import JobSpec
from worker.planning.preference_examples import Lengths, choose_examples, measure_examples
from worker.preflight.environment import PreflightEnvironment, sample_rows
from worker.templates.preference_tokens import PreferenceTokens, format_preferences
from worker.templates.prompt_check import check_prompts
from worker.templates.token_rows import FormattedRows, TokenRow, format_rows, hold_out


@dataclass(frozen=True)
class Reading:
    """The rows that were read; `scale` is the dataset's rows divided by the rows read.

    `examples`: of each row to train on, or each example of a preference method, the lengths of its sequences.
    """

    formatted: FormattedRows[Any]
    training_rows: int
    examples: list[Lengths]
    evaluation_rows: int
    scale: float

    @property
    def rows_read(self) -> int:
        """How many rows of the dataset were read."""
        return count_read(self.formatted)

    @property
    def is_sample(self) -> bool:
        """Whether the dataset has rows that were not read."""
        return self.scale > 1

    @property
    def has_conversations(self) -> bool:
        """Whether the rows are conversations, for which the chat template matters; all are of one kind."""
        return any(isinstance(as_example(sample.row), Conversation) for sample in self.formatted.samples)

    def extrapolate(self, count: int) -> int:
        """Scale a count of what was read to the whole dataset."""
        return round(count * self.scale)


def read_dataset(
    request: PreflightRequest,
    environment: PreflightEnvironment,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    embedding_rows: int,
) -> Reading:
    """Read the rows to train on, and count those to evaluate on.

    Raises InvalidRequest, NothingToLearn, TemplateMismatch, DatasetNotFound.
    """
    training = request.spec.training
    request = request.model_copy(update={"submitted_at": request.submitted_at or datetime.now(UTC)})
    formatted = _format(request, request.dataset, environment, tokenizer, max_length, embedding_rows)
    check_prompts(formatted.samples, tokenizer, moment=request.submitted_at)
    scale = request.dataset.rows / count_read(formatted)
    train, held_out = hold_out(formatted.rows, training.validation_split, training.seed)
    evaluation_rows = round(scale * len(held_out))
    if request.validation_dataset:
        evaluation_rows = _count_validation(
            request, request.validation_dataset, environment, tokenizer, max_length, embedding_rows
        )
    return Reading(formatted, len(train), _measure(train, request.spec), evaluation_rows, scale)


def _measure(train: Sequence[TokenRow] | Sequence[PreferenceTokens], spec: JobSpec) -> list[Lengths]:
    settings = spec.preferences
    preferences = [row for row in train if not isinstance(row, TokenRow)]
    if settings:
        return measure_examples(choose_examples(preferences, settings), settings)
    return [((row.tokens, row.trained_tokens),) for row in train]


def count_read(formatted: FormattedRows[Any]) -> int:
    """How many rows were read, dropped ones included."""
    return len(formatted.rows) + len(formatted.dropped_lines)


def _count_validation(
    request: PreflightRequest,
    dataset: DatasetRef,
    environment: PreflightEnvironment,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    embedding_rows: int,
) -> int:
    try:
        formatted = _format(request, dataset, environment, tokenizer, max_length, embedding_rows)
    except (InvalidRequest, NothingToLearn, TemplateMismatch, TemplateExceedsLimits) as error:
        raise type(error)(f"The validation dataset: {error.message}", hint=error.hint) from error
    return round(dataset.rows / count_read(formatted) * len(formatted.rows))


def _format(
    request: PreflightRequest,
    dataset: DatasetRef,
    environment: PreflightEnvironment,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    embedding_rows: int,
) -> FormattedRows[Any]:
    if request.spec.preferences:
        return format_preferences(
            sample_rows(environment, dataset),
            tokenizer,
            max_length=max_length,
            embedding_rows=embedding_rows,
            moment=request.submitted_at,
        )
    return format_rows(
        sample_rows(environment, dataset),
        tokenizer,
        assistant_only=request.spec.training.assistant_only_loss,
        max_length=max_length,
        embedding_rows=embedding_rows,
        moment=request.submitted_at,
    )
