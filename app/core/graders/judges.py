"""Models that grade: what they are asked, and how their answers are read. Pure.

The form of a score is OpenAI's: `result`, a number, after `steps`, in which the model may reason.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from app.core.graders.grades import GradeErrorKind, GradingFailed, JudgeUsage
from app.core.graders.shapes import JudgeSampling, LabelModelGrader, ScoreModelGrader
from app.core.graders.templates import Namespaces, render

Role = Literal["system", "user", "assistant", "developer"]

_STEPS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True)
class JudgeQuestion:
    """What a model is asked, and the JSON schema of its answer."""

    model: str
    messages: tuple[tuple[Role, str], ...]
    schema_name: str
    schema: dict[str, Any]
    sampling: JudgeSampling


@dataclass(frozen=True)
class JudgeAnswer:
    """What the model answered. `model` is its own name, by which its tokens are counted."""

    text: str
    usage: JudgeUsage
    model: str


# Raises GradingFailed.
AskJudge = Callable[[JudgeQuestion], Awaitable[JudgeAnswer]]


@dataclass(frozen=True)
class Verdict:
    """A score and the reasons for it."""

    score: float
    reason: str | None


def question(grader: ScoreModelGrader | LabelModelGrader, namespaces: Namespaces) -> JudgeQuestion:
    """Returns what the grader's model is asked. Raises VariableMissing."""
    result: dict[str, Any] = {"type": "number"}
    if isinstance(grader, LabelModelGrader):
        result = {"type": "string", "enum": grader.labels}
    schema = {
        "type": "object",
        "properties": {"steps": _STEPS, "result": result},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }
    return JudgeQuestion(
        model=grader.model,
        messages=tuple((message.role, render(message.text, namespaces)) for message in grader.input),
        schema_name="label" if isinstance(grader, LabelModelGrader) else "score",
        schema=schema,
        sampling=grader.sampling_params or JudgeSampling(),
    )


def read_verdict(grader: ScoreModelGrader | LabelModelGrader, text: str) -> Verdict:
    """Returns the score that a model's answer gives. Raises GradingFailed where it gives none."""
    answer = _parse(text)
    result = answer.get("result")
    reason = _reason(answer)
    if isinstance(grader, LabelModelGrader):
        if result not in grader.labels:
            raise _unreadable(f"its label is {result!r}, which is none of the labels")
        return Verdict(float(result in grader.passing_labels), f"{result}{f': {reason}' if reason else ''}")
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise _unreadable(f"`result` is {result!r}, which is no number")
    low, high = grader.bounds
    return Verdict(min(max(float(result), low), high), reason)


def _parse(text: str) -> dict[str, Any]:
    # Models without structured outputs often put JSON between the fences of Markdown.
    stripped = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        answer = json.loads(stripped)
    except (ValueError, RecursionError):
        raise _unreadable("it is not JSON") from None
    if not isinstance(answer, dict):
        raise _unreadable("it is not a JSON object")
    return answer


def _reason(answer: dict[str, Any]) -> str | None:
    steps = answer.get("steps")
    found = (
        [step.get("conclusion") for step in steps if isinstance(step, dict)]
        if isinstance(steps, list)
        else []
    )
    return " ".join(part for part in found if isinstance(part, str) and part) or None


def _unreadable(problem: str) -> GradingFailed:
    return GradingFailed(
        GradeErrorKind.JUDGE_ANSWER, f"The answer of the grading model can't be read: {problem}."
    )
