"""Results of graded rows."""

from app.core.evaluations.answers import Answer, AnswerError, StoredGrade
from app.core.evaluations.results import EvaluationResults, GradedRow, summarize
from tests.core.evaluations.evaluations import make_evaluation_spec


def graded_row(number: int, base: float | None, tuned: float | None) -> GradedRow:
    row = GradedRow(number)
    for model, score in ((0, base), (1, tuned)):
        error = None if score is not None else AnswerError(code="prompt_too_long", message="Too long.")
        row.answers[model] = Answer(text=f"{score}", finish_reason="stop", completion_tokens=3, error=error)
        row.grades[model] = [StoredGrade(score=score, passed=None if score is None else score >= 0.5)]
    return row


def results_of(*rows: GradedRow) -> EvaluationResults:
    return summarize(make_evaluation_spec(), rows)


def test_models_are_compared_row_by_row_with_the_baseline() -> None:
    found = results_of(graded_row(0, 0, 1), graded_row(1, 1, 1), graded_row(2, 1, 0), graded_row(3, 0, 1))
    assert found.baseline == "base"
    base, tuned = found.models
    assert base.graders[0].against_baseline is None
    against = tuned.graders[0].against_baseline
    assert against is not None
    assert (against.wins, against.ties, against.losses) == (2, 1, 1)
    assert tuned.graders[0].pass_rate is not None
    assert tuned.graders[0].pass_rate.value == 0.75
    assert found.disagreements == 3


def test_a_row_without_an_answer_of_one_model_is_not_compared() -> None:
    found = results_of(graded_row(0, None, 1), graded_row(1, 0, 1))
    base, tuned = found.models
    assert (base.answers, base.errors) == (1, 1)
    assert base.graders[0].graded == 1
    against = tuned.graders[0].against_baseline
    assert against is not None
    assert against.wins + against.ties + against.losses == 1


def test_nothing_graded_has_no_mean() -> None:
    found = results_of()
    assert found.models[0].graders[0].mean is None
    assert found.models[1].graders[0].against_baseline is None
