"""Sample answers of a job: by optimizer step, and before and after training next to each other."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.deps import JobId, Limit, ServicesDep
from app.api.http.errors import documented
from app.core.jobs import records as job_records, samples as job_samples
from app.core.jobs.events import SampleAnswer, Samples

router = APIRouter(prefix="/jobs/{job_id}", tags=["Jobs"])

_MAX_STEP = 2**31 - 1


class SamplesRead(BaseModel):
    """Answers of the model as it was at one optimizer step."""

    step: int = Field(description="Optimizer steps done; 0: before training.")
    epoch: float = Field(description="Passes over the dataset done.")
    is_final: bool = Field(description="The answers are those of the job's adapter.")
    seconds: float = Field(description="How long generating them took.")
    at: datetime = Field(description="When they were generated.")
    answers: list[SampleAnswer] = Field(description="In the order of the prompts.")

    @classmethod
    def make(cls, samples: Samples, at: datetime) -> "SamplesRead":
        """Samples as they were recorded, and when."""
        return cls(at=at, **samples.model_dump(exclude={"type"}))


class SamplesPage(BaseModel):
    """One page of samples, by step."""

    data: list[SamplesRead] = Field(description="The samples of this page.")
    next: int | None = Field(description="For `after`: the last step of this page; null: these are all.")


class ComparedAnswerRead(BaseModel):
    """One prompt with its answers."""

    prompt: str = Field(description="The prompt; of a conversation all its messages before the answer.")
    expected: str | None = Field(description="The dataset's answer; null: the prompt is the job's own.")
    before: str | None = Field(description="The answer before training; null: there is none.")
    after: str | None = Field(description="The answer of the job's adapter; null: there is none yet.")


class ComparisonRead(BaseModel):
    """Answers before training and after it."""

    before_step: int | None = Field(description="Always 0; null: the model was not sampled before training.")
    after_step: int | None = Field(description="The step whose adapter the job saves; null: none yet.")
    data: list[ComparedAnswerRead] = Field(description="The prompts in order.")


@router.get("/samples", summary="Sample answers of a job", responses=documented(404))
def list_samples(
    job_id: JobId,
    services: ServicesDep,
    after: Annotated[int | None, Query(ge=0, le=_MAX_STEP, description="Only steps after this one.")] = None,
    limit: Limit = 50,
) -> SamplesPage:
    """What the model in training makes of a few prompts, step by step; `training.sample_prompts` names them.

    Step 0 is the model before training: the base model, or the adapter that the job continues from.
    """
    with services.database.snapshot() as session:
        job_records.get(session, job_id)
        found, cursor = job_samples.read_page(session, job_id, after=after, limit=limit)
    return SamplesPage(data=[SamplesRead.make(samples, event.at) for event, samples in found], next=cursor)


@router.get("/comparison", summary="Answers before and after training", responses=documented(404))
def compare_answers(job_id: JobId, services: ServicesDep) -> ComparisonRead:
    """The sample prompts with the dataset's answer, the answer before training and that of the adapter."""
    with services.database.snapshot() as session:
        job_records.get(session, job_id)
        found = job_samples.compare(session, job_id)
    return ComparisonRead(
        before_step=found.before.step if found.before else None,
        after_step=found.after.step if found.after else None,
        data=[_compared(before, after) for before, after in found.pairs()],
    )


def _compared(before: SampleAnswer | None, after: SampleAnswer | None) -> ComparedAnswerRead:
    known = after or before
    assert known is not None
    return ComparedAnswerRead(
        prompt=known.prompt,
        expected=known.expected,
        before=before.answer if before else None,
        after=after.answer if after else None,
    )
