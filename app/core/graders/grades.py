"""What a grader gives: a score, whether the answer passed, or the reason why there is no score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class GradeErrorKind(StrEnum):
    """Why there is no score, by the names of the flags in OpenAI's response."""

    FORMULA = "formula_parse_error"
    INVALID_VARIABLE = "invalid_variable_error"
    JUDGE_ANSWER = "model_grader_parse_error"
    JUDGE_REFUSAL = "model_grader_refusal_error"
    JUDGE_SERVER = "model_grader_server_error"
    PYTHON_RUNTIME = "python_grader_runtime_error"
    PYTHON_SERVER = "python_grader_server_error"
    SAMPLE = "sample_parse_error"
    OTHER = "other_error"

    @property
    def is_of_sample(self) -> bool:
        """Whether the answer is at fault and not the grader, so that a score of 0 counts."""
        return self is GradeErrorKind.SAMPLE


class GradingFailed(Exception):
    """A grader has no score for an answer."""

    def __init__(self, kind: GradeErrorKind, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(message)


@dataclass(frozen=True)
class JudgeUsage:
    """Tokens that models read and made to grade, by the name of the model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "JudgeUsage") -> "JudgeUsage":
        prompt = self.prompt_tokens + other.prompt_tokens
        return JudgeUsage(prompt, self.completion_tokens + other.completion_tokens)

    @property
    def total_tokens(self) -> int:
        """Tokens read and made."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Grade:
    """The score of one answer. With `error` it is 0, but where a part of a multigrader has no score because
    of the answer: that part counts as 0.

    `passed` is None where the grader has no threshold. `reason` is what a model or a comparison says about
    the score. `scores` are those of a multigrader's graders, by their names in the formula.
    """

    score: float
    passed: bool | None
    reason: str | None = None
    error: GradingFailed | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    usage: Mapping[str, JudgeUsage] = field(default_factory=dict)
