"""Grades by models: perplexity and judges, and graders that lack what they need."""

import pytest

from app.core.engine.messages import Likelihood
from app.core.graders.grades import GradeErrorKind, GradingFailed, JudgeUsage
from app.core.graders.grading import GradingServices
from app.core.graders.judges import JudgeAnswer, JudgeQuestion
from tests.core.graders.grading import judge, run
from tests.core.graders.test_shapes import VALID


def test_perplexity_is_of_the_reference_and_passes_below_its_threshold() -> None:
    asked = []

    async def find_likelihood(text: str) -> Likelihood:
        asked.append(text)
        return Likelihood(logprob=-6.0, tokens=3)

    services = GradingServices(find_likelihood=find_likelihood)
    spec = {"type": "perplexity", "reference": " {{item.answer}}"}

    found = [run(spec | {"pass_threshold": limit}, services=services) for limit in (7.0, 8.0, None)]

    assert [one.passed for one in found] == [False, True, None]
    assert found[0].score == pytest.approx(7.389, abs=1e-3)
    assert asked == [" Oslo"] * 3


@pytest.mark.parametrize(
    ("answer", "score", "passed"),
    [
        ('{"steps": [], "result": 7}', 7, True),
        ('{"steps": [], "result": 99}', 10, True),
        ('{"result": -5.5}', 0, False),
        ('```json\n{"result": 4.5}\n```', 4.5, False),
    ],
)
def test_a_judges_score_is_clipped_to_its_range(answer: str, score: float, passed: bool) -> None:
    found = run(VALID["score_model"] | {"range": [0, 10]}, services=judge(answer))

    assert (found.score, found.passed, found.error) == (score, passed, None)
    assert found.usage == {"judge": JudgeUsage(10, 5)}


def test_a_judge_reads_the_rendered_messages_and_says_why() -> None:
    asked: list[JudgeQuestion] = []
    answer = '{"steps": [{"description": "d", "conclusion": "Right city."}], "result": 1}'

    found = run(VALID["score_model"], "Oslo!", services=judge(answer, asked))

    assert asked[0].messages == (("user", "Grade Oslo! against Oslo."),)
    assert asked[0].schema["properties"]["result"] == {"type": "number"}
    assert found.reason == "Right city."


@pytest.mark.parametrize("answer", ["seven", "[1]", '{"result": "7"}', '{"result": true}', "{}"])
def test_an_unreadable_score_is_0_with_an_error(answer: str) -> None:
    found = run(VALID["score_model"], services=judge(answer))

    assert (found.score, found.passed) == (0, False)
    assert found.error is not None
    assert found.error.kind is GradeErrorKind.JUDGE_ANSWER
    assert found.usage


def test_labels_pass_or_fail() -> None:
    good, bad, unknown = (
        run(VALID["label_model"], services=judge(f'{{"result": "{label}"}}'))
        for label in ("good", "bad", "x")
    )

    assert [good.passed, bad.passed, unknown.passed] == [True, False, False]
    assert unknown.error is not None
    assert unknown.error.kind is GradeErrorKind.JUDGE_ANSWER


@pytest.mark.parametrize("kind", ["score_model", "label_model", "python", "perplexity"])
def test_a_grader_without_what_it_needs_says_so(kind: str) -> None:
    found = run(VALID[kind])

    assert found.error is not None
    assert "is not available here" in found.error.message


def test_an_error_of_a_judge_is_the_grades() -> None:
    async def ask(_: JudgeQuestion) -> JudgeAnswer:
        raise GradingFailed(GradeErrorKind.JUDGE_REFUSAL, "The model refused.")

    found = run(VALID["score_model"], services=GradingServices(ask_judge=ask))

    assert found.error is not None
    assert found.error.kind is GradeErrorKind.JUDGE_REFUSAL
