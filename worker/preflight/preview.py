"""Previews of rows as the model reads them: every token, and whether it is trained."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import AnswerComparison, LabelledAnswer, Preference, Row
from app.core.engine.preflight import Preview, PreviewAnswer, PreviewRequest, PreviewRow, PreviewToken
from app.core.errors import InvalidRequest
from app.core.errors.jobs import TemplateExceedsLimits, TemplateMismatch
from app.core.specs.job import TrainingSpec
from worker.models.files import description, vocabulary
from worker.planning import automatic_settings
from worker.preflight.environment import NO_TEMPLATE, PreflightEnvironment, load_tokenizer, open_rows
from worker.preflight.token_text import token_texts
from worker.templates.choice import TemplateSource
from worker.templates.notices import describe_row
from worker.templates.preference_tokens import (
    ComparisonTokens,
    PreferenceTokens,
    encode_preference,
    is_learned,
    truncate,
)
from worker.templates.token_rows import IGNORED, TokenRow, encode_row


def run_preview(request: PreviewRequest, environment: PreflightEnvironment) -> Preview:
    """Preview one page of rows. Raises ModelMissing, ModelGated, HubUnreachable, DatasetNotFound."""
    folder, notices = environment.find_model(request.base_model)
    tokenizer, source = load_tokenizer(folder, None)
    if source is TemplateSource.PLAIN:
        notices.append(NO_TEMPLATE)
    training = TrainingSpec(max_seq_length=request.max_seq_length)
    max_length = automatic_settings.max_seq_length(training, description.read_context_length(folder))
    later = (pair for pair in open_rows(environment, request.dataset) if pair[0] > request.after)
    rows = list(itertools.islice(later, request.limit + 1))
    now, embedding_rows = datetime.now(UTC), description.count_embedding_rows(folder)
    shown = [
        show_row(
            line,
            row,
            tokenizer,
            assistant_only=request.assistant_only_loss,
            max_length=max_length,
            moment=now,
            embedding_rows=embedding_rows,
        )
        for line, row in rows[: request.limit]
    ]
    has_more = len(rows) > request.limit
    return Preview(data=shown, next=shown[-1].line if has_more else None, warnings=notices)


def show_row(
    line: int,
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool,
    max_length: int,
    moment: datetime | None = None,
    embedding_rows: int | None = None,
) -> PreviewRow:
    """Preview one row, truncated as in training; a date in it is the moment's, the present by default.

    Raises TemplateExceedsLimits.
    """
    try:
        if isinstance(row, AnswerComparison | LabelledAnswer):
            return _show_preference(
                line, row, tokenizer, max_length=max_length, moment=moment, embedding_rows=embedding_rows
            )
        encoded = encode_row(row, tokenizer, assistant_only=assistant_only, moment=moment)
        shown_ids = encoded.input_ids[:max_length]
        if embedding_rows is not None:
            vocabulary.check_ids(shown_ids, tokenizer, embedding_rows)
    except TemplateExceedsLimits as error:
        # Every further row may take as long: the page ends here.
        raise TemplateExceedsLimits(f"Line {line}: {error.message}", hint=error.hint) from error
    except (InvalidRequest, TemplateMismatch) as error:
        problem = f"{error.message} {error.hint}" if error.hint else error.message
        return PreviewRow(line=line, tokens=[], truncated=False, problem=problem)
    return PreviewRow(
        line=line,
        tokens=_show_tokens(shown_ids, encoded.labels[:max_length], tokenizer),
        token_count=len(encoded.input_ids),
        truncated=len(encoded.input_ids) > max_length,
        problem=None,
        notices=describe_row(encoded),
    )


def _show_preference(
    line: int,
    row: Preference,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    moment: datetime | None,
    embedding_rows: int | None,
) -> PreviewRow:
    """Preview a comparison or a labelled answer. Raises as `encode_preference` does."""
    encoded = encode_preference(line, row, tokenizer, moment=moment)
    if embedding_rows is not None:
        for one in encoded.answers:
            vocabulary.check_ids(one.input_ids[:max_length], tokenizer, embedding_rows)
    whole, cut = encoded.tokens, truncate(encoded.tokens, max_length)
    notices = list(dict.fromkeys(notice for one in encoded.answers for notice in describe_row(one)))
    if not is_learned(cut):
        notices.append(f"Within {max_length} tokens nothing is left to learn: a job leaves this row out.")
    prompt_ids = cut.prompt_ids
    return PreviewRow(
        line=line,
        tokens=_show_tokens(prompt_ids, [IGNORED] * len(prompt_ids), tokenizer),
        token_count=len(whole.prompt_ids),
        answers=[
            PreviewAnswer(
                name=name,
                is_good=is_good,
                tokens=_show_tokens(example.input_ids, example.labels, tokenizer)[len(prompt_ids) :],
                token_count=len(uncut.input_ids) - len(whole.prompt_ids),
            )
            for (name, is_good, example), (_, _, uncut) in zip(
                _answers_of(cut), _answers_of(whole), strict=True
            )
        ],
        truncated=cut != whole,
        problem=None,
        notices=notices,
    )


def _answers_of(
    tokens: PreferenceTokens,
) -> list[tuple[Literal["chosen", "rejected", "completion"], bool, TokenRow]]:
    """The name of each answer, whether it is a good one, and the prompt with it."""
    if isinstance(tokens, ComparisonTokens):
        return [("chosen", True, tokens.chosen), ("rejected", False, tokens.rejected)]
    return [("completion", tokens.label, tokens.example)]


def _show_tokens(
    input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[PreviewToken]:
    with description.reading_tokenizer(Path(tokenizer.name_or_path)):
        texts = token_texts(tokenizer, input_ids)
    return [
        PreviewToken(text=text, id=token, trained=label != IGNORED)
        for text, token, label in zip(texts, input_ids, labels, strict=True)
    ]
