"""What a model generated for a row, and its grades, as they are stored. Pure."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.core.graders.grades import Grade
from app.core.graders.samples import GradedSample, tool_call


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AnswerCall(_Stored):
    """A function call of an answer; `arguments` is JSON."""

    id: str = Field(description="What a result of the call refers to.")
    name: str = Field(description="The function's name.")
    arguments: str = Field(description="Its arguments, as JSON.")


class AnswerError(_Stored):
    """Why there is no answer."""

    code: str = Field(description="A stable word for programs.", examples=["prompt_too_long"])
    message: str = Field(description="What happened, for a person.")


class Answer(_Stored):
    """What one model generated for one row, or why it did not."""

    text: str = Field("", description="The answer.")
    reasoning: str | None = Field(None, description="What was thought before the answer, if anything.")
    tool_calls: list[AnswerCall] = Field([], description="The functions that the answer calls.")
    finish_reason: str | None = Field(None, description="`stop`, `length` or `tool_calls`; null: no answer.")
    prompt_tokens: int = Field(0, description="Tokens read.")
    completion_tokens: int = Field(0, description="Tokens made.")
    seconds: float | None = Field(None, description="From the request to the last token.")
    error: AnswerError | None = Field(None, description="Why there is no answer; null: there is one.")

    def as_sample(self) -> GradedSample:
        """Returns the answer as graders read it."""
        calls = tuple(tool_call(call.name, call.arguments, call.id) for call in self.tool_calls)
        return GradedSample(self.text, calls, self.finish_reason or "stop")


class StoredGrade(_Stored):
    """What one grader gave one answer."""

    score: float | None = Field(description="The score; null: there is none, see `error`.")
    passed: bool | None = Field(None, description="Whether the answer passed; null: no threshold.")
    reason: str | None = Field(None, description="What a comparison or a model says about the score.")
    error: AnswerError | None = Field(None, description="Why there is no score, or why it is 0.")
    scores: dict[str, float] = Field({}, description="Of `multi`: the scores of its graders.")
    usage: dict[str, dict[str, int]] = Field({}, description="Tokens of models that graded, by model.")

    @classmethod
    def of(cls, grade: Grade) -> "StoredGrade":
        """The grade as it is stored. One that failed for other reasons than the answer has no score."""
        failed = grade.error
        is_missing = failed is not None and not failed.kind.is_of_sample
        usage: dict[str, Any] = {
            model: {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens}
            for model, used in grade.usage.items()
        }
        return cls(
            score=None if is_missing else grade.score,
            passed=None if is_missing else grade.passed,
            reason=grade.reason,
            error=AnswerError(code=failed.kind.value, message=failed.message) if failed else None,
            scores=dict(grade.scores),
            usage=usage,
        )
