"""Training settings from OpenAI's hyperparameters, and back."""

from typing import Any

import pytest

from app.core.jobs import fine_tuning
from app.core.jobs.fine_tuning import Hyperparameters
from app.core.specs.job import TrainingSpec
from tests.factories import make_spec


def settings(asked: Hyperparameters = Hyperparameters(), rows: int = 100, **given: Any) -> dict[str, Any]:  # noqa: B008
    return fine_tuning.training_settings(asked, given, base_learning_rate=2e-4, rows=rows, is_validated=False)


@pytest.mark.parametrize(
    ("rows", "epochs"), [(10, 10), (3, 25), (33, 3), (34, 3), (8333, 3), (8334, 2), (12_501, 1), (90_000, 1)]
)
def test_auto_epochs_are_more_for_few_rows_and_fewer_for_many(rows: int, epochs: int) -> None:
    assert fine_tuning.auto_epochs(rows) == epochs


@pytest.mark.parametrize(
    ("batch", "passes"),
    [
        ("auto", ("auto", 1)),
        (8, ("auto", 2)),
        (1, (1, 1)),
        (2, (2, 1)),
        (6, (3, 2)),
        (10, (2, 5)),
        (7, (1, 7)),
    ],
)
def test_a_batch_is_split_into_passes_that_make_it_up(batch: Any, passes: tuple[Any, int]) -> None:
    made = settings(Hyperparameters(batch_size=batch))
    assert (made["per_device_train_batch_size"], made["gradient_accumulation_steps"]) == passes
    assert fine_tuning.effective_batch(TrainingSpec(**made)) == (4 if batch == "auto" else batch)


def test_the_learning_rate_is_a_multiple_of_the_recipes() -> None:
    made = settings(Hyperparameters(learning_rate_multiplier=2.5))
    assert made["learning_rate"] == pytest.approx(5e-4)


def test_requested_hyperparameters_are_those_that_the_job_shows() -> None:
    asked = Hyperparameters(n_epochs=2, batch_size=6, learning_rate_multiplier=0.3)
    assert fine_tuning.hyperparameters(make_spec(training=settings(asked))) == asked


def test_given_settings_have_precedence_over_derived_ones() -> None:
    made = settings(learning_rate=1e-3, num_train_epochs=7, keep_checkpoints=0, logging_steps=9)
    assert (made["learning_rate"], made["num_train_epochs"]) == (1e-3, 7)
    assert (made["keep_checkpoints"], made["logging_steps"]) == (0, 9)


def test_a_job_with_rows_held_out_is_evaluated_once_an_epoch() -> None:
    made = fine_tuning.training_settings(
        Hyperparameters(batch_size=8), {}, base_learning_rate=2e-4, rows=100, is_validated=True
    )
    assert made["eval_steps"] == 13


def test_a_long_job_logs_about_five_hundred_points() -> None:
    assert settings(rows=100)["logging_steps"] == 1
    assert settings(Hyperparameters(n_epochs=1), rows=40_000)["logging_steps"] == 20
