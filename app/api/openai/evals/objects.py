"""Evals, runs and output items in OpenAI's format, made of the rows of native evaluations."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.results import GradedRow
from app.core.evaluations.rows import SideBySide, answer_text
from app.core.evaluations.spec import EvaluationSpec
from app.core.specs.states import EvaluationState
from app.core.storage import tables

RunStatus = Literal["queued", "in_progress", "completed", "failed", "canceled"]
STATES: dict[RunStatus, EvaluationState] = {
    "queued": EvaluationState.QUEUED,
    "in_progress": EvaluationState.RUNNING,
    "completed": EvaluationState.SUCCEEDED,
    "failed": EvaluationState.FAILED,
    "canceled": EvaluationState.CANCELLED,
}
_STATUSES = {state: status for status, state in STATES.items()}


class EvalObject(BaseModel):
    """An eval."""

    id: str = Field(description="The eval's id.", examples=["eval_4kq1v9x2m7ahc3zt"])
    object: Literal["eval"] = Field("eval", description="Always `eval`.")
    created_at: int = Field(description="When it was made, in seconds since 1970.")
    name: str = Field(description="Its name.")
    data_source_config: dict[str, Any] = Field(description="What rows look like.")
    testing_criteria: list[dict[str, Any]] = Field(description="Its graders.")
    metadata: dict[str, str] = Field(description="Words of your own about it.")

    @classmethod
    def from_row(cls, row: tables.EvaluationDefinitionRow) -> "EvalObject":
        """The eval of a row."""
        shown = {name: row.content[name] for name in ("data_source_config", "testing_criteria", "metadata")}
        return cls(id=row.id, created_at=int(row.created_at.timestamp()), name=row.name, **shown)


class EvalDeleted(BaseModel):
    """The eval is gone, and its runs with it."""

    object: Literal["eval.deleted"] = Field("eval.deleted", description="Always `eval.deleted`.")
    deleted: Literal[True] = Field(True, description="Always true.")
    eval_id: str = Field(description="The eval's id.")


class EvalRunDeleted(BaseModel):
    """The run is gone."""

    object: Literal["eval.run.deleted"] = Field("eval.run.deleted", description="Always `eval.run.deleted`.")
    deleted: Literal[True] = Field(True, description="Always true.")
    run_id: str = Field(description="The run's id.")


class EvalError(BaseModel):
    """What went wrong."""

    code: str = Field(description="A stable word for programs.")
    message: str = Field(description="What happened, for a person.")


class EvalModelUsage(BaseModel):
    """Tokens of one model."""

    model_config = ConfigDict(protected_namespaces=())
    model_name: str = Field(description="The model.")
    invocation_count: int = Field(description="How often it was asked.")
    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    total_tokens: int = Field(description="Both.")
    cached_tokens: int = Field(0, description="Always 0.")


class CriterionResult(BaseModel):
    """What one grader found."""

    testing_criteria: str = Field(description="The grader's name.")
    passed: int = Field(description="Answers that passed.")
    failed: int = Field(description="Answers that failed.")


class ResultCounts(BaseModel):
    """How many rows came to what."""

    total: int = Field(description="Rows that are graded.")
    passed: int = Field(description="Rows that passed all graders.")
    failed: int = Field(description="Rows that failed one.")
    errored: int = Field(description="Rows without an answer, or with a grader that failed.")


class EvalRunObject(BaseModel):
    """A run of an eval. Native routes show it as an evaluation with the same id."""

    id: str = Field(description="The run's id.", examples=["ev_4kq1v9x2m7ahc3zt"])
    object: Literal["eval.run"] = Field("eval.run", description="Always `eval.run`.")
    eval_id: str = Field(description="The eval's id.")
    created_at: int = Field(description="When it was made, in seconds since 1970.")
    name: str = Field(description="Its name.")
    status: RunStatus = Field(description="Where it stands.")
    model: str = Field(description="The model that answers; empty where the rows have answers.")
    data_source: dict[str, Any] = Field(description="The rows, and what answers them.")
    error: EvalError | None = Field(description="Why it failed.")
    metadata: dict[str, str] = Field(description="Words of your own about it.")
    per_model_usage: list[EvalModelUsage] = Field(description="Tokens by model, those that grade included.")
    per_testing_criteria_results: list[CriterionResult] = Field(description="What each grader found.")
    result_counts: ResultCounts = Field(description="How many rows came to what.")
    report_url: str = Field(description="The evaluation's page on the dashboard.")

    @classmethod
    def from_row(
        cls, row: tables.EvaluationRow, graded: Iterable[GradedRow], *, dashboard: str
    ) -> "EvalRunObject":
        """The run of a row and of what is graded of it so far."""
        spec = EvaluationSpec.model_validate(row.spec)
        origin = row.origin or {}
        pairs = [(one.answers[0], one.grades[0]) for one in graded if 0 in one.grades]
        error = row.error
        return cls(
            id=row.id,
            eval_id=row.definition_id or "",
            created_at=int(row.created_at.timestamp()),
            name=row.name,
            status=_STATUSES[EvaluationState(row.state)],
            model=origin.get("model", ""),
            data_source=origin.get("data_source", {}),
            error=EvalError(code=error["code"], message=error["message"]) if error else None,
            metadata=origin.get("metadata", {}),
            per_model_usage=_usage(origin.get("model", ""), pairs),
            per_testing_criteria_results=[
                _criterion(name, [grades[index] for _, grades in pairs])
                for index, name in enumerate(spec.grader_names)
            ],
            result_counts=_counts(pairs),
            report_url=f"{dashboard}#/evaluation/{row.id}",
        )


class OutputItemResult(BaseModel):
    """What one grader gave."""

    name: str = Field(description="The grader's name.")
    type: str = Field(description="The grader's type.")
    passed: bool = Field(description="Whether the answer passed; true also where there is no threshold.")
    score: float = Field(description="The score; 0 where there is none.")
    sample: dict[str, Any] | None = Field(None, description="Why, or what went wrong.")


class OutputMessage(BaseModel):
    """A message."""

    role: str = Field(description="Who speaks.")
    content: str = Field(description="What is said.")


class OutputAnswer(BaseModel):
    """The answer."""

    role: Literal["assistant"] = Field("assistant", description="Always `assistant`.")
    content: str | None = Field(description="Its text.")
    tool_calls: list[dict[str, Any]] | None = Field(None, description="The functions that it calls.")


class OutputUsage(BaseModel):
    """Tokens of one answer."""

    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    total_tokens: int = Field(description="Both.")
    cached_tokens: int = Field(0, description="Always 0.")


class OutputSample(BaseModel):
    """What was asked and answered."""

    input: list[OutputMessage] = Field(description="The messages.")
    output: list[OutputAnswer] = Field(description="The answer.")
    model: str = Field(description="The model.")
    finish_reason: str = Field(description="Why the answer ended.")
    error: EvalError | None = Field(description="Why there is no answer.")
    usage: OutputUsage = Field(description="Tokens.")
    temperature: float = Field(description="The temperature.")
    top_p: float = Field(description="The nucleus.")
    max_completion_tokens: int = Field(description="Most tokens that could be made.")
    seed: int | None = Field(description="The seed; null: drawn.")


class OutputItem(BaseModel):
    """A row of a run with its answer and grades."""

    id: str = Field(description="The item's id: that of the run, and the row's number.")
    object: Literal["eval.run.output_item"] = Field(
        "eval.run.output_item", description="Always `eval.run.output_item`."
    )
    run_id: str = Field(description="The run's id.")
    eval_id: str = Field(description="The eval's id.")
    created_at: int = Field(description="When the run was made, in seconds since 1970.")
    status: Literal["pass", "fail", "error"] = Field(description="Whether all graders passed.")
    datasource_item_id: int = Field(description="The row's number, from 0.")
    datasource_item: dict[str, Any] = Field(description="The row.")
    results: list[OutputItemResult] = Field(description="What each grader gave.")
    sample: OutputSample = Field(description="What was asked and answered.")

    @classmethod
    def from_row(cls, run: tables.EvaluationRow, row: SideBySide) -> "OutputItem":
        """The item of a row that is graded."""
        spec, origin = EvaluationSpec.model_validate(run.spec), run.origin or {}
        answer, grades = row.graded.answers[0], row.graded.grades[0]
        added = origin.get("added_to_items", [])
        named = zip(spec.grader_names, spec.graders, grades, strict=True)
        return cls(
            id=item_id(run.id, row.number),
            run_id=run.id,
            eval_id=run.definition_id or "",
            created_at=int(run.created_at.timestamp()),
            status=outcome(answer, grades),
            datasource_item_id=row.number,
            datasource_item={name: value for name, value in row.item.items() if name not in added},
            results=[_result(name, grader.type, grade) for name, grader, grade in named],
            sample=_sample(spec, origin.get("model", ""), row, answer),
        )


def item_id(run_id: str, number: int) -> str:
    """Returns the id of a row's output item."""
    return f"{run_id}_{number}"


def outcome(answer: Answer, grades: list[StoredGrade]) -> Literal["pass", "fail", "error"]:
    """Returns whether an answer passed all graders. One without a threshold does not count."""
    if answer.error is not None or any(grade.score is None for grade in grades):
        return "error"
    return "fail" if any(grade.passed is False for grade in grades) else "pass"


def _counts(pairs: list[tuple[Answer, list[StoredGrade]]]) -> ResultCounts:
    found = [outcome(answer, grades) for answer, grades in pairs]
    return ResultCounts(
        total=len(found),
        passed=found.count("pass"),
        failed=found.count("fail"),
        errored=found.count("error"),
    )


def _criterion(name: str, grades: list[StoredGrade]) -> CriterionResult:
    passed = sum(grade.passed is True for grade in grades)
    return CriterionResult(
        testing_criteria=name, passed=passed, failed=sum(grade.passed is False for grade in grades)
    )


def _usage(model: str, pairs: list[tuple[Answer, list[StoredGrade]]]) -> list[EvalModelUsage]:
    found: dict[str, list[tuple[int, int]]] = {}
    for answer, grades in pairs:
        if model and answer.error is None:
            found.setdefault(model, []).append((answer.prompt_tokens, answer.completion_tokens))
        for grade in grades:
            for judge, used in grade.usage.items():
                found.setdefault(judge, []).append((used["prompt_tokens"], used["completion_tokens"]))
    return [_add_up(name, counts) for name, counts in found.items()]


def _add_up(model: str, counts: list[tuple[int, int]]) -> EvalModelUsage:
    read, made = (sum(column) for column in zip(*counts, strict=True))
    return EvalModelUsage(
        model_name=model,
        invocation_count=len(counts),
        prompt_tokens=read,
        completion_tokens=made,
        total_tokens=read + made,
    )


def _result(name: str, kind: str, grade: StoredGrade) -> OutputItemResult:
    said: dict[str, Any] = {"reason": grade.reason} if grade.reason else {}
    if grade.error is not None:
        said["error"] = grade.error.model_dump()
    if grade.scores:
        said["scores"] = grade.scores
    return OutputItemResult(
        name=name,
        type=kind,
        passed=grade.score is not None and grade.passed is not False,
        score=grade.score or 0.0,
        sample=said or None,
    )


def _sample(spec: EvaluationSpec, model: str, row: SideBySide, answer: Answer) -> OutputSample:
    messages = row.prompt.get("messages") or []
    text = row.prompt.get("text")
    if text:
        messages = [{"role": "user", "content": text}]
    error = answer.error
    calls = list(answer.as_sample().tool_calls)
    return OutputSample(
        input=[OutputMessage(role=one["role"], content=one["content"]) for one in messages],
        output=[OutputAnswer(content=answer.text, tool_calls=calls or None)] if answer_text(answer) else [],
        model=model,
        finish_reason=answer.finish_reason or "",
        error=EvalError(code=error.code, message=error.message) if error else None,
        usage=OutputUsage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            total_tokens=answer.prompt_tokens + answer.completion_tokens,
        ),
        temperature=spec.sampling.temperature,
        top_p=spec.sampling.top_p,
        max_completion_tokens=spec.sampling.max_new_tokens,
        seed=spec.sampling.seed,
    )
