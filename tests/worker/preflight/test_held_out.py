"""The rows that a job holds out."""

import pytest

from app.core.datasets.rows import AnswerComparison, Message, Row
from app.core.errors.jobs import NothingToLearn
from tests.worker.preflight.conftest import Ask, chat, make_rows
from worker.preflight.environment import PreflightEnvironment, load_tokenizer
from worker.preflight.held_out import find_held_out
from worker.templates.token_rows import format_rows, hold_out

SPLIT = {"validation_split": 0.25, "seed": 5, "max_seq_length": 64, "assistant_only_loss": True}


def test_they_are_those_that_the_training_holds_out(ask: Ask, environment: PreflightEnvironment) -> None:
    # Of the third row nothing is learned: the split is of the others.
    rows: list[Row] = [*make_rows(2), chat("long " * 200), *make_rows(9)]
    request = ask(rows, training=SPLIT)
    folder, _ = environment.find_model(request.spec.base_model)
    tokenizer, _ = load_tokenizer(folder, None)
    numbered = [(10 * number, row) for number, row in enumerate(rows, start=1)]
    formatted = format_rows(numbered, tokenizer, assistant_only=True, max_length=64)
    expected = [row.line for row in hold_out(formatted.rows, 0.25, 5)[1]]
    assert 30 in formatted.dropped_lines
    assert find_held_out(request, environment).lines == expected


def test_comparisons_are_held_out_too(ask: Ask, environment: PreflightEnvironment) -> None:
    rows: list[Row] = [
        AnswerComparison(
            (Message("user", f"Question {index}?"),),
            (Message("assistant", "Yes."),),
            (Message("assistant", "No."),),
        )
        for index in range(8)
    ]
    found = find_held_out(ask(rows, method="dpo", training=SPLIT), environment)
    assert len(found.lines) == 2


def test_a_job_without_a_share_holds_nothing_out(ask: Ask, environment: PreflightEnvironment) -> None:
    with pytest.raises(NothingToLearn, match="validation_split is 0"):
        find_held_out(ask(), environment)
