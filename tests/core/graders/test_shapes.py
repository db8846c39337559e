"""Graders as requests name them."""

from typing import Any

import pytest
from openai.types.graders import (
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)
from pydantic import BaseModel, ValidationError

from app.core.graders import shapes

JUDGED = [{"role": "user", "content": "Grade {{sample.output_text}} against {{item.answer}}."}]
TEXTS = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
STRING_CHECK = {"type": "string_check", "name": "s", "operation": "eq", **TEXTS}
VALID: dict[str, dict[str, Any]] = {
    "string_check": STRING_CHECK,
    "text_similarity": {"type": "text_similarity", "name": "t", "evaluation_metric": "bleu", **TEXTS},
    "score_model": {"type": "score_model", "name": "m", "model": "judge", "input": JUDGED},
    "label_model": {
        "type": "label_model",
        "name": "l",
        "model": "judge",
        "input": JUDGED,
        "labels": ["good", "bad"],
        "passing_labels": ["good"],
    },
    "python": {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"},
    "json_schema": {"type": "json_schema", "name": "j", "schema": {"type": "object"}},
    "tool_call": {"type": "tool_call", "name": "c", "reference": "{{item.tool_calls}}"},
    "perplexity": {"type": "perplexity", "name": "x", "reference": "{{item.answer}}"},
    "multi": {
        "type": "multi",
        "name": "all",
        "graders": {"exact": STRING_CHECK},
        "calculate_output": "2 * exact ^ 2 - 1",
    },
}


@pytest.mark.parametrize("kind", VALID)
def test_every_kind_of_grader_is_read_and_written_back_as_it_was(kind: str) -> None:
    grader = shapes.grader_adapter.validate_python(VALID[kind])

    assert grader.model_dump(mode="json", by_alias=True, exclude_unset=True) == VALID[kind]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (shapes.StringCheckGrader, StringCheckGrader),
        (shapes.TextSimilarityGrader, TextSimilarityGrader),
        (shapes.ScoreModelGrader, ScoreModelGrader),
        (shapes.LabelModelGrader, LabelModelGrader),
        (shapes.PythonGrader, PythonGrader),
        (shapes.MultiGrader, MultiGrader),
        (shapes.JudgeSampling, ScoreModelGrader.model_fields["sampling_params"].annotation.__args__[0]),
    ],
)
def test_every_field_of_openais_client_is_taken(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    assert set(theirs.model_fields) <= set(ours.model_fields)


def test_every_metric_of_openais_client_is_known_by_name() -> None:
    metrics = TextSimilarityGrader.model_fields["evaluation_metric"].annotation

    assert set(metrics.__args__) == set(shapes.SimilarityMetric)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reference": "{{answer}}"}, "must begin with `item.` or `sample.`"),
        ({"reference": "{{item}}"}, "names no variable"),
        ({"reference": "{{item.a b}}"}, "is no path"),
        ({"operation": "neq"}, "'eq', 'ne', 'like' or 'ilike'"),
        ({"extra": 1}, "Extra inputs"),
    ],
)
def test_a_string_check_that_can_never_run_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        shapes.grader_adapter.validate_python(STRING_CHECK | changes)


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        (
            "text_similarity",
            {"evaluation_metric": "cosine"},
            "`cosine` is not supported.*Use one of fuzzy_match",
        ),
        ("text_similarity", {"evaluation_metric": "meteor"}, "`meteor` is not supported: it needs the data"),
        ("label_model", {"passing_labels": ["great"]}, "not among the labels: great"),
        ("score_model", {"range": [1, 0]}, "two numbers, the lower one first"),
        ("score_model", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_text"),
        ("python", {"source": "def grade(sample):\n    return 1"}, "must take two arguments"),
        ("python", {"source": "def other():\n    return 1"}, "must define"),
        ("python", {"source": "def grade(sample, item)\n"}, "line 1: expected ':'"),
        ("python", {"source": "#" * 256_001}, "longer than 256000 bytes"),
        ("json_schema", {"schema": {"type": "thing"}}, "no JSON schema"),
        ("json_schema", {"schema": {"$ref": "http://example.com/a.json"}}, "not fetched"),
        ("json_schema", {"schema": {"$ref": "file:///etc/passwd"}}, "not fetched"),
        ("multi", {"calculate_output": "exact + other"}, "there is no grader 'other'"),
        ("multi", {"calculate_output": "exact.real"}, "can't be part of a formula"),
        ("multi", {"calculate_output": "__import__('os')"}, "can't be part of a formula"),
        ("multi", {"calculate_output": "1 +"}, "is no formula"),
        ("multi", {"graders": {"inner": VALID["multi"]}}, "does not match any of the expected tags"),
    ],
)
def test_graders_that_can_never_run_are_refused(kind: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        shapes.grader_adapter.validate_python(VALID[kind] | changes)


@pytest.mark.parametrize("graders", [STRING_CHECK, [STRING_CHECK]])
def test_a_multigrader_of_the_clients_type_is_known_by_the_names_of_its_graders(graders: Any) -> None:
    """The client's type has one grader, OpenAI's reference a list, and its guide an object."""
    changes = {"graders": graders, "calculate_output": "s"}
    grader = shapes.grader_adapter.validate_python(VALID["multi"] | changes)

    assert isinstance(grader, shapes.MultiGrader)
    assert list(grader.graders) == ["s"]
