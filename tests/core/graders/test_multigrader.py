"""Multigraders: formulas over the scores of others."""

import pytest

from app.core.graders.grades import GradeErrorKind
from tests.core.graders.grading import run
from tests.core.graders.test_shapes import VALID


def test_a_multigrader_combines_openais_example() -> None:
    spec = {
        "type": "multi",
        "graders": {
            "name": {
                "name": "name_grader",
                "type": "text_similarity",
                "input": "{{sample.output_json.name}}",
                "reference": "{{item.name}}",
                "evaluation_metric": "fuzzy_match",
                "pass_threshold": 0.9,
            },
            "email": {
                "name": "email_grader",
                "type": "string_check",
                "input": "{{sample.output_json.email}}",
                "reference": "{{item.email}}",
                "operation": "eq",
            },
        },
        "calculate_output": "(name + email) / 2",
    }
    item = {"name": "John Doe", "email": "john@example.com"}

    found = run(spec, '{"name": "Jon Doe", "email": "john@example.com"}', item)

    assert found.scores == {"name": pytest.approx(14 / 15), "email": 1}
    assert found.score == pytest.approx((14 / 15 + 1) / 2)


@pytest.mark.parametrize(
    ("formula", "score"),
    [
        ("min(s, 0.5) + max(s, 2) - abs(-s)", 1.5),
        ("floor(1.7) + ceil(1.2) * sqrt(4) ^ 2", 9),
        ("exp(0) + log(s) - 2^3^0", -1),
    ],
)
def test_formulas_know_openais_operators_and_functions(formula: str, score: float) -> None:
    found = run(VALID["multi"] | {"graders": [VALID["string_check"]], "calculate_output": formula})

    assert found.score == pytest.approx(score)


@pytest.mark.parametrize("formula", ["s / 0", "log(s - 1)", "10 ^ 400", "exp(1000)", "min()", "sqrt(-s)"])
def test_a_formula_without_a_value_is_an_error(formula: str) -> None:
    found = run(VALID["multi"] | {"graders": [VALID["string_check"]], "calculate_output": formula})

    assert found.error is not None
    assert found.error.kind is GradeErrorKind.FORMULA


def test_an_answer_without_a_variable_is_at_fault_and_an_item_without_one_the_grader() -> None:
    spec = {"type": "string_check", "operation": "eq", "reference": "x"}
    of_sample = run(spec | {"input": "{{sample.output_json.a}}"})
    of_item = run(spec | {"input": "{{item.question}}"})

    assert of_sample.error is not None
    assert of_item.error is not None
    assert (of_sample.error.kind.is_of_sample, of_item.error.kind.is_of_sample) == (True, False)
    assert of_item.error.message == "{{item.question}}: there is no 'question'."


def test_a_part_that_fails_because_of_the_answer_counts_as_0_and_any_other_fails_the_whole() -> None:
    part = {"type": "string_check", "name": "a", "operation": "eq", "reference": "x"}
    spec = {**VALID["multi"], "calculate_output": "a + s"}
    no_call, no_item = (
        run(spec | {"graders": [part | {"input": source}, VALID["string_check"]]})
        for source in ("{{sample.output_tools[0].function.name}}", "{{item.missing}}")
    )

    assert no_call.score == 1
    assert no_item.score == 0
    assert no_item.error is not None
    assert no_item.error.kind is GradeErrorKind.INVALID_VARIABLE
