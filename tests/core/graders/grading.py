"""One grade of one answer, and a judge that says what a test wants."""

import asyncio
from typing import Any

from app.core.graders.grades import Grade, JudgeUsage
from app.core.graders.grading import GradingServices, grade
from app.core.graders.judges import JudgeAnswer, JudgeQuestion
from app.core.graders.samples import GradedSample
from app.core.graders.shapes import grader_adapter

TEXTS = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}


def run(
    spec: dict[str, Any],
    text: str | GradedSample = "Oslo",
    item: dict[str, Any] | None = None,
    services: GradingServices | None = None,
) -> Grade:
    grader = grader_adapter.validate_python({"name": "g", **spec})
    sample = GradedSample(text) if isinstance(text, str) else text
    return asyncio.run(
        grade(grader, {"answer": "Oslo"} if item is None else item, sample, services or GradingServices())
    )


def judge(text: str, asked: list[JudgeQuestion] | None = None) -> GradingServices:
    async def ask(question: JudgeQuestion) -> JudgeAnswer:
        if asked is not None:
            asked.append(question)
        return JudgeAnswer(text, JudgeUsage(10, 5), question.model)

    return GradingServices(ask_judge=ask)
