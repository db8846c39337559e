"""Odd rows and odd numbers: each trains or fails with the reason, and none is lost silently."""

from typing import Any

import pytest

from app.core.jobs.events import Evaluation, Log, Metrics, Warn
from tests.tiny_model import CONTEXT_LENGTH
from tests.worker.training.conftest import MakeRequest, Reports, make_rows, run_here
from worker.processes.reports import Outcome

SHORT: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}


def warnings(reports: Reports) -> dict[str, str]:
    return {event.code: event.message for event in reports.events(Warn)}


def row(words: int) -> dict[str, Any]:
    return {"prompt": "Say it.", "completion": " it" * words}


@pytest.mark.parametrize("training", [{}, {"group_by_length": False}, {"packing": True}])
def test_one_row_is_enough(make_request: MakeRequest, training: dict[str, Any]) -> None:
    reports = run_here(make_request(rows=make_rows(1), training=SHORT | training))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    assert [event.epoch for event in reports.events(Metrics)] == [1, 2]


@pytest.mark.parametrize("grouped", [True, False])
def test_a_batch_larger_than_the_dataset_is_the_dataset(make_request: MakeRequest, grouped: bool) -> None:
    training = SHORT | {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 4}

    reports = run_here(make_request(rows=make_rows(3), training=training | {"group_by_length": grouped}))

    assert reports.ended.outcome is Outcome.FINISHED
    assert reports.events(Metrics)[-1].epoch == 2


def test_more_steps_than_rows_go_round_again(make_request: MakeRequest) -> None:
    training = SHORT | {"max_steps": 7, "num_train_epochs": 1, "per_device_train_batch_size": 1}

    reports = run_here(make_request(rows=make_rows(2), training=training))

    assert reports.events(Metrics)[-1].epoch == 3.5


def test_a_validation_split_of_almost_nothing_or_almost_all_leaves_a_row_on_each_side(
    make_request: MakeRequest,
) -> None:
    for share in (0.001, 0.999):
        training = SHORT | {"validation_split": share}
        request = make_request(f"split-{share}", rows=make_rows(2), training=training)

        reports = run_here(request)

        assert reports.ended.outcome is Outcome.FINISHED
        assert len(reports.events(Evaluation)) == 1


def test_one_row_can_not_be_split(make_request: MakeRequest) -> None:
    ended = run_here(make_request(rows=make_rows(1), training=SHORT | {"validation_split": 0.5})).ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "nothing_to_learn")
    assert "too few to hold any out" in (ended.message or "")
    assert ended.hint == "Set training.validation_split to 0."


@pytest.mark.parametrize("field", ["images", "id"])
def test_fields_that_are_not_used_are_named_in_the_log(make_request: MakeRequest, field: str) -> None:
    # One row can't be split, so the job ends before it loads the model.
    reports = run_here(
        make_request(rows=[make_rows(1)[0] | {field: "x"}], training=SHORT | {"validation_split": 0.5})
    )

    said = [event.message for event in reports.events(Log)] + list(warnings(reports).values())
    assert f"{field!r} (1 row)" in " ".join(said)
    assert ("unused_fields" in warnings(reports)) is (field == "images")


def test_an_answer_longer_than_the_context_is_cut_and_named(make_request: MakeRequest) -> None:
    reports = run_here(make_request(rows=[row(2), row(2 * CONTEXT_LENGTH)], training=SHORT))

    assert reports.ended.outcome is Outcome.FINISHED
    assert f"1 rows are longer than {CONTEXT_LENGTH} tokens" in warnings(reports)["rows_cut"]
    assert "line 2" in warnings(reports)["rows_cut"]


def test_rows_whose_prompt_fills_the_context_are_dropped_and_named(make_request: MakeRequest) -> None:
    long = {"prompt": "Why? " * CONTEXT_LENGTH, "completion": "So."}

    some = run_here(make_request("some", rows=[row(2), long, row(3), long], training=SHORT))
    all_of_them = run_here(make_request("all", rows=[long, long], training=SHORT))

    assert some.ended.outcome is Outcome.FINISHED
    assert "lines 2, 4" in warnings(some)["rows_dropped"]
    assert all_of_them.ended.code == "nothing_to_learn"
    assert "None of the 2 rows" in (all_of_them.ended.message or "")


def test_a_validation_dataset_is_evaluated_on_and_not_trained_on(
    make_request: MakeRequest,
) -> None:
    validation = make_request("validation", rows=[row(3), row(4)]).dataset
    training = SHORT | {"eval_steps": 1, "early_stopping_patience": 5}
    request = make_request(training=training, validation_dataset="ds_1111111111111111")

    reports = run_here(request.model_copy(update={"validation_dataset": validation}))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    assert [event.step for event in reports.events(Evaluation)] == [1, 2]
    alone = run_here(make_request("alone", training=SHORT))
    assert reports.events(Metrics)[0].tokens == alone.events(Metrics)[0].tokens


def test_a_validation_dataset_with_nothing_to_learn_is_named(
    make_request: MakeRequest,
) -> None:
    long = {"prompt": "Why? " * CONTEXT_LENGTH, "completion": "So."}
    validation = make_request("validation", rows=[long]).dataset
    request = make_request(training=SHORT, validation_dataset="ds_1111111111111111")

    ended = run_here(request.model_copy(update={"validation_dataset": validation})).ended

    assert ended.code == "nothing_to_learn"
    assert (ended.message or "").startswith("The validation dataset: None of the 1 rows")
