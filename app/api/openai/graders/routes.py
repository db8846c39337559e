"""POST /v1/fine_tuning/alpha/graders/run and /validate, in OpenAI's format."""

import time
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field

from app.api.chat.request_parts import RequestPart
from app.api.deps import Services, ServicesDep
from app.api.generate.answers import CLIENT_CLOSED_REQUEST, unless_disconnected
from app.api.http.access.auth import CallerDep
from app.api.openai.graders.services import grading_services
from app.core.evaluations.submission import check_graders
from app.core.graders.grades import Grade, GradeErrorKind
from app.core.graders.grading import grade
from app.core.graders.samples import GradedSample
from app.core.graders.shapes import AnyGrader, Grader, MultiGrader

router = APIRouter(prefix="/fine_tuning/alpha/graders")

_STRING_CHECK = {
    "type": "string_check",
    "name": "capital",
    "input": "{{sample.output_text}}",
    "reference": "{{item.capital}}",
    "operation": "ilike",
}
_RUN: dict[str, Example] = {
    "string check": {
        "summary": "Whether an answer contains a text",
        "value": {
            "grader": _STRING_CHECK,
            "item": {"capital": "Oslo"},
            "model_sample": "The capital is Oslo.",
        },
    }
}
_VALIDATE: dict[str, Example] = {"string check": {"summary": "One", "value": {"grader": _STRING_CHECK}}}


class GraderValidateBody(RequestPart):
    """A grader to check."""

    grader: Grader = Field(description="The grader.")


class GraderRunBody(GraderValidateBody):
    """A grader, and an answer to grade."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model_sample: str = Field(
        description="The answer: `sample.output_text`, and where it is JSON, `sample.output_json`."
    )
    item: dict[str, Any] | None = Field(None, description="The row: `item` in templates.")


class ValidatedGrader(BaseModel):
    """The grader as it was sent."""

    grader: dict[str, Any] = Field(description="The grader.")


class GraderErrors(BaseModel):
    """Why there is no score, if there is none."""

    model_config = ConfigDict(protected_namespaces=())
    formula_parse_error: bool = Field(False, description="The formula has no value.")
    invalid_variable_error: bool = Field(False, description="A template names what the item has not.")
    model_grader_parse_error: bool = Field(
        False, description="The answer of the grading model is unreadable."
    )
    model_grader_refusal_error: bool = Field(False, description="The grading model refused.")
    model_grader_server_error: bool = Field(False, description="The grading model could not be asked.")
    model_grader_server_error_details: str | None = Field(None, description="Why it could not be asked.")
    other_error: bool = Field(False, description="Another reason.")
    python_grader_runtime_error: bool = Field(False, description="The Python source failed.")
    python_grader_runtime_error_details: str | None = Field(None, description="How it failed.")
    python_grader_server_error: bool = Field(False, description="Python graders can't run.")
    python_grader_server_error_type: str | None = Field(None, description="Why they can't.")
    sample_parse_error: bool = Field(False, description="The answer has not what a template names.")
    truncated_observation_error: bool = Field(False, description="Always false.")
    unresponsive_reward_error: bool = Field(False, description="Always false.")
    message: str | None = Field(None, description="Not OpenAI's. What happened, for a person.")

    @classmethod
    def of(cls, found: Grade) -> "GraderErrors":
        """The flags of a grade."""
        if found.error is None:
            return cls()
        kind, message = found.error.kind, found.error.message
        details = {
            GradeErrorKind.JUDGE_SERVER: "model_grader_server_error_details",
            GradeErrorKind.PYTHON_RUNTIME: "python_grader_runtime_error_details",
            GradeErrorKind.PYTHON_SERVER: "python_grader_server_error_type",
        }
        named = {details[kind]: message} if kind in details else {}
        return cls.model_validate({kind.value: True, "message": message, **named})


class GraderRunMetadata(BaseModel):
    """How the grader ran."""

    name: str = Field(description="The grader's name.")
    type: str = Field(description="The grader's type.")
    errors: GraderErrors = Field(description="Why there is no score, if there is none.")
    execution_time: float = Field(description="Seconds that it took.")
    scores: dict[str, float] = Field(description="The scores by the graders' names.")
    token_usage: int | None = Field(None, description="Tokens that grading models read and made.")
    sampled_model_name: None = Field(None, description="Always null.")
    passed: bool | None = Field(None, description="Not OpenAI's. Whether the answer passed.")
    reason: str | None = Field(None, description="Not OpenAI's. What is said about the score.")


class GraderRun(BaseModel):
    """The grade of one answer."""

    model_config = ConfigDict(protected_namespaces=())
    reward: float = Field(description="The score; 0 where there is none.")
    sub_rewards: dict[str, float] = Field(description="Of `multi`: the scores of its graders.")
    model_grader_token_usage_per_model: dict[str, int] = Field(description="Tokens, by grading model.")
    metadata: GraderRunMetadata = Field(description="How the grader ran.")

    @classmethod
    def of(cls, grader: AnyGrader, found: Grade, seconds: float) -> "GraderRun":
        """The grade in OpenAI's format."""
        usage = {model: used.total_tokens for model, used in found.usage.items()}
        scores = dict(found.scores)
        return cls(
            reward=found.score,
            sub_rewards=scores,
            model_grader_token_usage_per_model=usage,
            metadata=GraderRunMetadata(
                name=grader.name,
                type=grader.type,
                errors=GraderErrors.of(found),
                execution_time=seconds,
                scores=scores
                if isinstance(grader, MultiGrader)
                else {grader.name or grader.type: found.score},
                token_usage=sum(usage.values()) if usage else None,
                passed=found.passed,
                reason=found.reason,
            ),
        )


@router.post("/run", summary="Run a grader", response_model=GraderRun)
async def run_grader(
    body: Annotated[GraderRunBody, Body(openapi_examples=_RUN)],
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
) -> object:
    """Grade one answer. An answer or a grader that gives no score has a reward of 0 and says why."""
    await to_thread.run_sync(_check, services, body.grader)
    began_at = time.monotonic()
    async with grading_services(services, caller) as tools:
        sample = GradedSample(body.model_sample)
        found = await unless_disconnected(request, grade(body.grader, body.item or {}, sample, tools))
    if found is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return GraderRun.of(body.grader, found, time.monotonic() - began_at)


@router.post("/validate", summary="Check a grader")
def validate_grader(
    body: Annotated[GraderValidateBody, Body(openapi_examples=_VALIDATE)], services: ServicesDep
) -> ValidatedGrader:
    """Check that a grader is sound and can run here. Returns it as it was sent."""
    _check(services, body.grader)
    return ValidatedGrader(grader=body.grader.model_dump(mode="json", by_alias=True, exclude_unset=True))


def _check(services: Services, grader: AnyGrader) -> None:
    with services.database.snapshot() as session:
        check_graders(session, services.settings, [grader])
