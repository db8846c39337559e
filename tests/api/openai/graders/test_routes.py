"""Graders as the official client runs and validates them."""

from typing import Any

import openai
import pytest

from app.core.engine.messages import TokenDelta
from app.core.settings import Settings
from tests.core.graders.test_shapes import VALID
from tests.fakes import FINISHED, FakeEngine

OPENAI_KINDS = ["string_check", "text_similarity", "score_model", "python", "multi"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_python_graders": True})


def test_python_graders_are_refused_unless_allowed(openai_client: openai.OpenAI, settings: Settings) -> None:
    settings.allow_python_graders = False
    with pytest.raises(openai.BadRequestError, match="TUNESMITH_ALLOW_PYTHON_GRADERS"):
        openai_client.fine_tuning.alpha.graders.validate(grader=own("python"))


def own(kind: str, **changes: Any) -> Any:
    """A grader of this kind whose model is the adapter of the tests."""
    spec = {**VALID[kind], **changes}
    return spec | {"model": "helper"} if "model" in spec else spec


@pytest.mark.parametrize("kind", OPENAI_KINDS)
def test_a_grader_is_validated_and_returned(openai_client: openai.OpenAI, kind: str) -> None:
    found = openai_client.fine_tuning.alpha.graders.validate(grader=own(kind))
    assert found.grader is not None
    assert (found.grader.type, found.grader.name) == (kind, VALID[kind]["name"])


@pytest.mark.parametrize(
    ("grader", "problem"),
    [
        (VALID["string_check"] | {"operation": "is"}, "operation"),
        (VALID["text_similarity"] | {"evaluation_metric": "meteor"}, "`meteor` is not supported"),
        (VALID["score_model"], "There is no model 'judge'"),
        ({"type": "magic"}, "magic"),
    ],
)
def test_a_grader_that_can_not_run_is_refused_by_name(
    openai_client: openai.OpenAI, grader: Any, problem: str
) -> None:
    for call in (
        lambda: openai_client.fine_tuning.alpha.graders.validate(grader=grader),
        lambda: openai_client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x"),
    ):
        with pytest.raises(openai.BadRequestError, match=problem):
            call()


def test_a_string_check_is_run(openai_client: openai.OpenAI) -> None:
    found = openai_client.fine_tuning.alpha.graders.run(
        grader=own("string_check"), item={"answer": "Oslo"}, model_sample="Oslo"
    )
    assert (found.reward, found.sub_rewards, found.metadata.scores) == (1, {}, {"s": 1})
    assert (found.metadata.name, found.metadata.type) == ("s", "string_check")
    assert not any(value for value in found.metadata.errors.model_dump().values())


def test_a_multigrader_has_the_scores_of_its_parts(openai_client: openai.OpenAI) -> None:
    grader = own("multi", graders={"exact": VALID["string_check"]}, calculate_output="exact * 0.5")
    found = openai_client.fine_tuning.alpha.graders.run(grader=grader, item={"answer": "1"}, model_sample="1")
    assert (found.reward, found.sub_rewards) == (0.5, {"exact": 1})


def test_a_python_grader_is_run(openai_client: openai.OpenAI) -> None:
    source = "def grade(sample, item):\n    return len(sample['output_json']['a']) / item['n']"
    run = openai_client.fine_tuning.alpha.graders.run
    found = run(grader=own("python", source=source), item={"n": 4}, model_sample='{"a": [1, 2]}')
    failed = run(grader=own("python", source=source), item={"n": 0}, model_sample='{"a": [1, 2]}')
    assert found.reward == 0.5
    assert failed.reward == 0
    assert failed.metadata.errors.python_grader_runtime_error
    assert failed.metadata.errors.python_grader_runtime_error_details == (
        "line 2: ZeroDivisionError: division by zero"
    )


def test_a_model_of_this_server_grades(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text='{"steps": [], "result": 0.75}'), FINISHED]
    found = openai_client.fine_tuning.alpha.graders.run(
        grader=own("score_model"), item={"answer": "Oslo"}, model_sample="oslo"
    )
    (request,) = engine.requests
    assert found.reward == 0.75
    assert found.api_model_grader_token_usage_per_model == {"helper": found.metadata.token_usage}
    assert request.messages is not None
    assert request.messages[0].content == "Grade oslo against Oslo."
    assert request.output_schema is not None


def test_a_model_that_can_not_be_asked_is_an_error_of_the_grade(
    openai_client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.stop()
    found = openai_client.fine_tuning.alpha.graders.run(
        grader=own("score_model"), item={"answer": "Oslo"}, model_sample="oslo"
    )
    assert found.reward == 0
    assert found.metadata.errors.api_model_grader_server_error
    assert found.metadata.errors.api_model_grader_server_error_details


def test_what_a_template_lacks_is_named(openai_client: openai.OpenAI) -> None:
    found = openai_client.fine_tuning.alpha.graders.run(grader=own("string_check"), model_sample="x")
    assert found.metadata.errors.invalid_variable_error
    assert found.metadata.errors.message == "{{item.answer}}: there is no 'answer'."
