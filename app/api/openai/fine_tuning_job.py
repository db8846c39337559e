"""A fine-tuning job in OpenAI's format, made from the native job's row."""

from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, Field

from app.core.adapters.records import ORGANIZATION
from app.core.datasets import openai_files
from app.core.jobs import fine_tuning
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState
from app.core.specs.tracking import Tracker
from app.core.storage import tables


class HyperparametersUsed(BaseModel):
    """What `auto` came to."""

    n_epochs: float | int = Field(description="Passes over the file.")
    batch_size: int = Field(description="Rows that an optimizer step learns from.")
    learning_rate_multiplier: float = Field(description="Times 2e-4 (`supervised`) or 2e-5 (other methods).")


class PreferencesUsed(HyperparametersUsed):
    """What `auto` came to, of a method that learns from preferences."""

    beta: float = Field(description="How strongly the model is held near the one it starts from.")


class SupervisedUsed(BaseModel):
    """How it is trained."""

    hyperparameters: HyperparametersUsed = Field(description="What `auto` came to.")


class PreferenceMethodUsed(BaseModel):
    """How it is trained on preferences."""

    hyperparameters: PreferencesUsed = Field(description="What `auto` came to.")


class MethodUsed(BaseModel):
    """The kind of training."""

    type: Literal["supervised", "dpo", "kto", "orpo"] = Field(
        description="`kto` and `orpo` are not OpenAI's; native jobs have them."
    )
    supervised: SupervisedUsed | None = Field(None, description="How it is trained, of `supervised`.")
    dpo: PreferenceMethodUsed | None = Field(None, description="How it is trained, of `dpo`.")
    kto: PreferenceMethodUsed | None = Field(None, description="How it is trained, of `kto`.")
    orpo: PreferenceMethodUsed | None = Field(None, description="How it is trained, of `orpo`.")

    @classmethod
    def of(cls, spec: JobSpec) -> "MethodUsed":
        """The method of a job, with its hyperparameters."""
        used, preferences = _used(spec), spec.preferences
        if preferences is None:
            return cls(type="supervised", supervised=SupervisedUsed(hyperparameters=used))
        numbers = PreferencesUsed(**used.model_dump(), beta=preferences.beta)
        found = PreferenceMethodUsed(hyperparameters=numbers)
        return cls.model_validate({"type": spec.method, spec.method: found})


class WandbIntegrationRead(BaseModel):
    """How the job's run is named in Weights & Biases."""

    project: str = Field(description="The project.")
    name: str | None = Field(description="The run; null: the job's name, or else its id.")
    entity: str | None = Field(description="The user or team; null: that of the worker's key.")
    tags: list[str] = Field(description="Tags of the run.")


class IntegrationRead(BaseModel):
    """Where the job's metrics go, too."""

    type: Literal["wandb"] = Field("wandb", description="Always `wandb`.")
    wandb: WandbIntegrationRead = Field(description="How the run is named.")

    @classmethod
    def find(cls, spec: JobSpec) -> "list[IntegrationRead]":
        """The integrations of a job, made here or through the native API."""
        if Tracker.WANDB not in spec.report_to:
            return []
        named = spec.tracking
        found = WandbIntegrationRead(
            project=named.project, name=named.run_name, entity=named.entity, tags=named.tags
        )
        return [cls(wandb=found)]


class FineTuningJobError(BaseModel):
    """Why the job failed."""

    code: str = Field(description="A stable word for programs.", examples=["invalid_n_examples"])
    message: str = Field(description="What happened, for a person.")
    param: str | None = Field(description="The parameter it is about.")


class FineTuningJob(BaseModel):
    """A job, made here or through the native API."""

    id: str = Field(description="Names the job, in the native API too.")
    object: Literal["fine_tuning.job"] = Field("fine_tuning.job", description="Always `fine_tuning.job`.")
    created_at: int = Field(description="When it was made, in seconds since 1970.")
    finished_at: int | None = Field(description="When it ended.")
    model: str = Field(description="The base model.")
    fine_tuned_model: str | None = Field(description="Name of the finished adapter; `model` takes it.")
    organization_id: str = Field(description="Always the same.")
    status: str = Field(description="Where it stands; `paused` is not among OpenAI's own words.")
    training_file: str = Field(description="Id of the file.")
    validation_file: str | None = Field(description="Id of the file to evaluate on.")
    hyperparameters: HyperparametersUsed = Field(description="What `auto` came to.")
    method: MethodUsed = Field(description="How it is trained.")
    result_files: list[str] = Field(description="Once it has succeeded: the id of its loss curve, as CSV.")
    seed: int = Field(description="Seed of data order and initialisation.")
    trained_tokens: int | None = Field(description="Tokens seen, once it has ended.")
    error: FineTuningJobError | None = Field(description="Why it failed.")
    estimated_finish: int | None = Field(description="About when it will end.")
    integrations: list[IntegrationRead] = Field(description="Weights & Biases, where the job reports to it.")
    metadata: dict[str, str] | None = Field(description="Words of your own.")
    user_provided_suffix: str | None = Field(description="The suffix that was asked for.")
    name: str = Field(description="Not OpenAI's. Name of the native job.")
    spec: JobSpec = Field(description="Not OpenAI's. Every setting of the native job.")

    @classmethod
    def from_row(cls, row: tables.JobRow, *, trained_tokens: int | None) -> "FineTuningJob":
        """The job in OpenAI's format; `trained_tokens` comes from its events."""
        spec, state = JobSpec.model_validate(row.spec), JobState(row.state)
        used = _used(spec)
        return cls(
            id=row.id,
            created_at=_seconds(row.created_at),
            finished_at=_seconds(row.finished_at) if row.finished_at else None,
            model=row.base_model,
            fine_tuned_model=row.adapter.name if row.adapter else None,
            organization_id=ORGANIZATION,
            status=state,
            training_file=row.dataset_id,
            validation_file=spec.validation_dataset,
            hyperparameters=used,
            method=MethodUsed.of(spec),
            result_files=[openai_files.result_of(row)] if state is JobState.SUCCEEDED else [],
            seed=spec.training.seed,
            trained_tokens=trained_tokens if state.has_ended else None,
            error=_error(row),
            estimated_finish=_estimated_finish(row),
            integrations=IntegrationRead.find(spec),
            metadata=spec.metadata or None,
            user_provided_suffix=spec.suffix or None,
            name=row.name,
            spec=spec,
        )


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _used(spec: JobSpec) -> HyperparametersUsed:
    used = fine_tuning.hyperparameters(spec)
    return HyperparametersUsed.model_validate(vars(used))


def _error(row: tables.JobRow) -> FineTuningJobError | None:
    if row.error_code is None:
        return None
    message = row.error_message or ""
    text = f"{message} {row.error_hint}" if row.error_hint else message
    return FineTuningJobError(
        code=row.error_code, message=text, param=fine_tuning.param_of(row.error_code, message)
    )


def _estimated_finish(row: tables.JobRow) -> int | None:
    if row.state != JobState.RUNNING or row.eta_seconds is None:
        return None
    return _seconds(datetime.now(UTC) + timedelta(seconds=row.eta_seconds))
