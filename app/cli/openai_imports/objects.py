"""OpenAI's objects as its API returns them, as far as they are read here. Unknown fields are ignored.

The fields are those of the OpenAI client: `openai.types.fine_tuning`, `openai.types.eval_create_params` and
`openai.types.evals.run_create_params`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]


class _Object(BaseModel):
    model_config = ConfigDict(extra="ignore")


class OpenAIHyperparameters(_Object):
    """How a job trained; a job that has ended has numbers where `auto` was asked for."""

    n_epochs: float | Auto | None = None
    batch_size: int | Auto | None = None
    learning_rate_multiplier: float | Auto | None = None
    beta: float | Auto | None = None


class OpenAIMethodSettings(_Object):
    """The settings of one method; `grader` is that of reinforcement."""

    hyperparameters: OpenAIHyperparameters | None = None
    grader: dict[str, Any] | None = None


class OpenAIMethod(_Object):
    """The kind of training."""

    type: str = "supervised"
    supervised: OpenAIMethodSettings | None = None
    dpo: OpenAIMethodSettings | None = None
    reinforcement: OpenAIMethodSettings | None = None

    @property
    def settings(self) -> OpenAIMethodSettings:
        """The settings of the method that is used."""
        own: OpenAIMethodSettings | None = getattr(self, self.type, None)
        return own or OpenAIMethodSettings()


class OpenAIJobError(_Object):
    """Why a job failed; null fields where it did not."""

    message: str | None = None


class OpenAIJob(_Object):
    """A fine-tuning job, or the body of a request for one."""

    id: str = ""
    created_at: int = 0
    model: str
    training_file: str
    validation_file: str | None = None
    status: str = "succeeded"
    error: OpenAIJobError | None = None
    fine_tuned_model: str | None = None
    suffix: str | None = None
    user_provided_suffix: str | None = None
    seed: int | None = None
    hyperparameters: OpenAIHyperparameters | None = None
    method: OpenAIMethod | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The job's id, or what it learned from."""
        return self.id or f"a job on {self.training_file}"

    @property
    def own_suffix(self) -> str:
        """The suffix that was asked for, also where only the fine-tuned model's name still has it."""
        parts = (self.fine_tuned_model or "").split(":")
        return self.user_provided_suffix or self.suffix or (parts[3] if len(parts) > 4 else "")

    @property
    def chosen_hyperparameters(self) -> OpenAIHyperparameters:
        """Those of the method, else those of older jobs."""
        own = self.method.settings.hyperparameters if self.method else None
        return own or self.hyperparameters or OpenAIHyperparameters()


class DataSourceConfig(_Object):
    """What the rows of an eval look like."""

    type: str
    item_schema: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class OpenAIEval(_Object):
    """The definition of an eval: its graders, and what rows look like."""

    id: str = ""
    name: str | None = None
    data_source_config: DataSourceConfig
    testing_criteria: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Its name, else its id."""
        return self.name or self.id or "an eval without a name"


class RunSource(_Object):
    """Where the rows of a run are from."""

    type: str
    id: str | None = None
    content: list[dict[str, Any]] | None = None


class RunData(_Object):
    """What a run asks its model."""

    type: str
    source: RunSource
    input_messages: dict[str, Any] | None = None
    model: str | None = None
    sampling_params: dict[str, Any] | None = None


class OpenAIEvalRun(_Object):
    """A run of an eval on one model."""

    id: str = ""
    eval_id: str = ""
    created_at: int = 0
    data_source: RunData


class OpenAIFile(_Object):
    """A file that was uploaded to OpenAI: its id and its name."""

    id: str
    filename: str
