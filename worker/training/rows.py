"""Turns the job's dataset into rows of tokens, and reports rows that were cut or dropped."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation, Row, as_example, read_rows
from app.core.datasets.unused_fields import describe_unused
from app.core.errors import InvalidRequest
from app.core.errors.jobs import NothingToLearn, TemplateExceedsLimits, TemplateMismatch
from app.core.specs.methods import PreferenceSpec
from worker.planning.preference_examples import Examples, Lengths, choose_examples, measure_examples
from worker.processes.parallel_map import Work
from worker.processes.reports import TrainingRequest
from worker.templates.choice import (
    TemplateSource,
    adopt_function_template,
    read_model_type,
    set_template,
)
from worker.templates.notices import describe_rows
from worker.templates.preference_tokens import ComparisonTokens, PreferenceTokens, format_preferences
from worker.templates.prompt_check import check_prompts
from worker.templates.token_rows import (
    FormattedRows,
    Sample,
    TokenRow,
    format_rows,
    hold_out,
)
from worker.training.attempt import TrainingAttempt

_LINES_SHOWN = 20
_ROWS_BETWEEN_STOPS = 200

AnyRow = TokenRow | PreferenceTokens


@dataclass(frozen=True)
class PreferenceRows:
    """The examples of a preference method to train and to evaluate on."""

    train: Examples
    held_out: Examples


@dataclass(frozen=True)
class PreparedRows:
    """Token rows to train and evaluate on, samples with their text, and the source of the chat template.

    With `preferences` the job learns from these; the rows are then the prompts with an answer each, held out
    those with a preferred or good one.
    """

    train: list[TokenRow]
    held_out: list[TokenRow]
    samples: list[Sample]
    template_source: TemplateSource
    preferences: PreferenceRows | None = None

    def measure(self, settings: PreferenceSpec | None) -> list[Lengths]:
        """(tokens, learned tokens) of every sequence of each row, or of each example of `preferences`."""
        if self.preferences and settings:
            return measure_examples(self.preferences.train, settings)
        return [((row.tokens, row.trained_tokens),) for row in self.train]


def prepare_rows(
    attempt: TrainingAttempt,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    max_length: int,
    embedding_rows: int,
) -> PreparedRows:
    """Rows to train on and rows to evaluate on; reports what was cut or dropped.

    Sets the tokenizer's chat template. Raises InvalidRequest, NothingToLearn, and TemplateMismatch, which
    would otherwise end the job only after training.
    """
    request, training = attempt.request, attempt.request.spec.training
    source = set_template(
        tokenizer, model_type=read_model_type(model_folder), wanted=request.spec.chat_template
    )
    if has_conversations(request):
        _report_template(attempt, source)
    if training.max_seq_length and training.max_seq_length > max_length:
        attempt.warn(
            "context_length",
            f"max_seq_length is {training.max_seq_length}, but the base model reads at most {max_length} "
            "tokens.",
        )
    _report_unused_fields(attempt)
    formatted = _format(attempt, request.dataset, tokenizer, max_length, embedding_rows)
    check_prompts(formatted.samples, tokenizer, moment=request.submitted_at)
    if formatted.plain_function_lines:
        adopt_function_template(tokenizer)
    _report_cut_rows(attempt, formatted, max_length)
    if request.validation_dataset:
        rows = formatted.rows
        held_out = _format_validation(
            attempt, request.validation_dataset, tokenizer, max_length, embedding_rows
        )
    else:
        rows, held_out = hold_out(formatted.rows, training.validation_split, training.seed)
    counts = f"{len(rows)} rows to train on" + (f", {len(held_out)} to evaluate on" if held_out else "")
    share = formatted.trained_tokens / formatted.tokens
    attempt.say(f"{counts}: {formatted.tokens:,} tokens, {share:.0%} of them trained.")
    return _prepare(rows, held_out, formatted.samples, source, request.spec.preferences)


def has_conversations(request: TrainingRequest) -> bool:
    """Whether the chat template renders the rows of the dataset, by the first of them."""
    with request.dataset.open("rb") as lines:
        return isinstance(as_example(next(read_rows(lines))[1]), Conversation)


def _prepare(
    rows: Sequence[AnyRow],
    held_out: Sequence[AnyRow],
    samples: list[Sample],
    source: TemplateSource,
    settings: PreferenceSpec | None,
) -> PreparedRows:
    train, evaluated = ([one for one in part if isinstance(one, TokenRow)] for part in (rows, held_out))
    if settings is None:
        return PreparedRows(train, evaluated, samples, source)
    preferences = PreferenceRows(
        *(
            choose_examples([one for one in part if not isinstance(one, TokenRow)], settings)
            for part in (rows, held_out)
        )
    )
    train = [_with_answer(one) for one in preferences.train]
    evaluated = [
        _with_answer(one) for one in preferences.held_out if isinstance(one, ComparisonTokens) or one.label
    ]
    return PreparedRows(train, evaluated, samples, source, preferences)


def _with_answer(example: PreferenceTokens) -> TokenRow:
    return example.chosen if isinstance(example, ComparisonTokens) else example.example


def _report_unused_fields(attempt: TrainingAttempt) -> None:
    unused = attempt.request.unused_fields
    if any(one.changes_learning for one in unused):
        attempt.warn("unused_fields", describe_unused(unused))
    elif unused:
        attempt.say(describe_unused(unused))


def _report_template(attempt: TrainingAttempt, source: TemplateSource) -> None:
    if source is TemplateSource.FAMILY:
        attempt.say("The base model has no chat template; conversations are rendered as its family does.")
    if source is TemplateSource.PLAIN:
        attempt.warn(
            "no_chat_template", "The base model has no chat template; conversations are rendered plainly."
        )


def _format(
    attempt: TrainingAttempt,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    embedding_rows: int,
) -> FormattedRows[Any]:
    spec = attempt.request.spec
    with path.open("rb") as lines:
        # Each rank reads all rows.
        work = Work(sum(1 for _line in lines), processors=(os.cpu_count() or 1) // attempt.world.size)
        lines.seek(0)
        if spec.preferences:
            return format_preferences(
                _read_rows(attempt, lines),
                tokenizer,
                max_length=max_length,
                moment=attempt.request.submitted_at,
                embedding_rows=embedding_rows,
                work=work,
            )
        return format_rows(
            _read_rows(attempt, lines),
            tokenizer,
            assistant_only=spec.training.assistant_only_loss,
            max_length=max_length,
            moment=attempt.request.submitted_at,
            embedding_rows=embedding_rows,
            work=work,
        )


def _read_rows(attempt: TrainingAttempt, lines: Iterable[bytes]) -> Iterator[tuple[int, Row]]:
    """Yields the rows with their lines. Raises Stopped, since many of them take long."""
    for index, numbered in enumerate(read_rows(lines)):
        if index % _ROWS_BETWEEN_STOPS == 0:
            attempt.stop_if_asked()
        yield numbered


def _format_validation(
    attempt: TrainingAttempt,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    embedding_rows: int,
) -> Sequence[AnyRow]:
    try:
        formatted = _format(attempt, path, tokenizer, max_length, embedding_rows)
    except (InvalidRequest, NothingToLearn, TemplateMismatch, TemplateExceedsLimits) as error:
        raise type(error)(f"The validation dataset: {error.message}", hint=error.hint) from error
    _report_cut_rows(attempt, formatted, max_length, of="The validation dataset: ")
    return formatted.rows


def _report_cut_rows(
    attempt: TrainingAttempt, formatted: FormattedRows[Any], max_length: int, *, of: str = ""
) -> None:
    if formatted.cut_lines:
        attempt.warn(
            "rows_cut",
            f"{of}{len(formatted.cut_lines)} rows are longer than {max_length} tokens and were cut: "
            f"{_name_lines(formatted.cut_lines)}.",
        )
    for notice in describe_rows(formatted):
        attempt.warn(notice.code, of + notice.message)
    if formatted.dropped_lines:
        attempt.warn(
            "rows_dropped",
            f"{of}{len(formatted.dropped_lines)} rows keep no token to learn from and were left out: "
            f"{_name_lines(formatted.dropped_lines)}.",
        )


def _name_lines(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
    more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"
