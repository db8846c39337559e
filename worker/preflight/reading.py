"""Reads a job's datasets as the job would: rendered, masked, truncated, split.

Of large ones, and of rows that take long to render, every n-th row.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation
from app.core.engine.preflight import DatasetRef, PreflightRequest
from app.core.errors import InvalidRequest
from app.core.errors.jobs import NothingToLearn, TemplateExceedsLimits, TemplateMismatch
from worker.preflight.environment import PreflightEnvironment, sample_rows
from worker.templates.prompt_check import check_prompts
from worker.templates.token_rows import FormattedRows, TokenRow, format_rows, hold_out


@dataclass(frozen=True)
class Reading:
    """The rows that were read; `scale` is the dataset's rows divided by the rows read."""

    formatted: FormattedRows
    train: list[TokenRow]
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
        return any(isinstance(sample.row, Conversation) for sample in self.formatted.samples)

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
    return Reading(formatted, train, evaluation_rows, scale)


def count_read(formatted: FormattedRows) -> int:
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
) -> FormattedRows:
    return format_rows(
        sample_rows(environment, dataset),
        tokenizer,
        assistant_only=request.spec.training.assistant_only_loss,
        max_length=max_length,
        embedding_rows=embedding_rows,
        moment=request.submitted_at,
    )
