"""The preflight of jobs that learn from preferences: both answers of a row are computed together."""

from pathlib import Path
from typing import Any

import pytest

from app.core.datasets.rows import AnswerComparison, LabelledAnswer, Message
from app.core.errors import InvalidRequest
from tests.worker.preflight.conftest import GPU, Ask
from tests.worker.preflight.test_report import real_steps
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import run_preflight


def compare(index: int) -> AnswerComparison:
    question = (Message("user", "How do I cancel a job? " * (1 + index % 3)),)
    chosen, rejected = "Send POST. " * (1 + index % 4), "No."
    return AnswerComparison(question, (Message("assistant", chosen),), (Message("assistant", rejected),))


def label(index: int) -> LabelledAnswer:
    row = compare(index)
    return LabelledAnswer(row.prompt, row.chosen, index % 2 == 0)


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "dpo", "training": {"num_train_epochs": 2, "validation_split": 0.2}},
        {"method": "kto", "training": {"gradient_accumulation_steps": 2}},
        {"method": "orpo", "training": {"per_device_train_batch_size": "auto"}},
    ],
    ids=lambda spec: spec["method"],
)
def test_steps_are_those_of_the_trainer(
    ask: Ask, environment: PreflightEnvironment, tmp_path: Path, spec: dict[str, Any]
) -> None:
    request = ask([compare(index) for index in range(23)], **spec)

    found = run_preflight(request, environment)

    assert found.optimizer_steps == real_steps(request, environment, tmp_path)
    assert found.training_rows + found.evaluation_rows == 23
    assert (found.time.reference_seconds > 0) == (spec["method"] != "orpo")


def test_both_answers_take_memory(ask: Ask, environment: PreflightEnvironment) -> None:
    on_gpu = environment.model_copy(update={"device": GPU})
    training = {"gradient_checkpointing": False}
    alone, met, compared = (
        run_preflight(ask(rows, training=training, **spec), on_gpu)
        for rows, spec in (
            ([label(3)] * 20, {"method": "kto", "kto": {"loss_type": "apo_zero_unpaired"}}),
            ([label(3)] * 20, {"method": "kto"}),
            ([compare(3)] * 20, {"method": "dpo"}),
        )
    )
    assert met.memory.activations > 1.5 * alone.memory.activations
    # A short rejected answer takes less than another prompt's long one.
    assert alone.memory.activations < compared.memory.activations < met.memory.activations
    assert met.tokens.total == 2 * alone.tokens.total


def test_labelled_answers_are_refused_by_a_method_that_compares(
    ask: Ask, environment: PreflightEnvironment
) -> None:
    with pytest.raises(InvalidRequest, match="one answer with a label"):
        run_preflight(ask([label(index) for index in range(4)], method="dpo"), environment)


def test_dropout_takes_no_memory_where_it_is_off(ask: Ask, environment: PreflightEnvironment) -> None:
    on_gpu = environment.model_copy(update={"device": GPU})
    rows = [compare(index) for index in range(20)]
    found = [
        run_preflight(ask(rows, method="dpo", lora={"r": 4, "dropout": dropout}), on_gpu).memory.activations
        for dropout in (0.0, 0.5)
    ]
    assert found[0] == found[1]
