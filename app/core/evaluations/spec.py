"""What an evaluation is of: rows, models, graders and how answers are sampled. Knows no database."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.core.engine.sampling import Sampling
from app.core.graders.shapes import MAX_GRADERS, Grader, PerplexityGrader, TemplateMessage
from app.core.specs.job import QuantizationSpec
from app.core.specs.patterns import MODEL_NAME
from app.core.specs.priority import Priority

MAX_MODELS = 16
MAX_ROWS = 10_000
DEFAULT_ROWS = 200

ModelText = Annotated[str, Field(min_length=1, max_length=400)]


class _EvaluationPart(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EvaluationSampling(Sampling):
    """How the models are sampled: greedily, where the request does not say."""

    temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        description="0: always the likeliest token, so that a repetition has the same answers.",
    )
    logprobs: None = Field(None, description="Not available in evaluations.")


class ModelChoice(_EvaluationPart):
    """A model to evaluate: an adapter (of a job, of a checkpoint, imported), or a base model."""

    adapter: ModelText | None = Field(
        None, description="Id or name of an adapter; a checkpoint's is `name:ckpt-step-20`."
    )
    base_model: str | None = Field(
        None, max_length=200, pattern=MODEL_NAME, description="A base model without an adapter."
    )
    quantization: QuantizationSpec | None = Field(
        None,
        description="With `base_model`: how its weights are held; default: as for the first adapter of the "
        "evaluation that was trained on it, else as in a job that says nothing.",
    )
    label: str | None = Field(
        None, min_length=1, max_length=100, description="Its name in the results; default: the model's name."
    )

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.adapter is None) == (self.base_model is None):
            raise ValueError("give either `adapter` or `base_model`")
        if self.adapter and self.quantization:
            raise ValueError(
                "`quantization` is for base models: an adapter is on the weights it was trained on"
            )
        return self


class EvaluatedModel(_EvaluationPart):
    """A model of an evaluation, found under the name that the request gave."""

    label: str = Field(description="Its name in the results.")
    base_model: str = Field(description="The base model.")
    quantization: QuantizationSpec = Field(description="How its weights are held.")
    adapter: str | None = Field(None, description="The adapter's id; null: the base model alone.")
    adapter_name: str | None = Field(None, description="The adapter's name when the evaluation was made.")
    step: int | None = Field(None, description="The optimizer step, of a checkpoint's adapter.")


class EvaluationSpec(_EvaluationPart):
    """An evaluation as it is stored: its models are found, and its inline rows are elsewhere.

    `input`: messages whose contents are templates, or the path of messages in the item, such as
    `item.messages`; null: the prompt that the row itself has.
    """

    dataset: str | None = Field(None, description="The dataset's id.")
    held_out_of: str | None = Field(None, description="Id of the job whose validation rows are evaluated on.")
    input: list[TemplateMessage] | str | None = Field(None, description="What the models are asked.")
    models: list[EvaluatedModel] = Field(description="The models, in the order of the results.")
    baseline: int = Field(0, description="Which model the others are compared with, counted from 0.")
    graders: list[Grader] = Field([], description="What grades the answers.")
    sampling: EvaluationSampling = Field(EvaluationSampling(), description="How answers are sampled.")
    generate: bool = Field(True, description="Whether the models answer; false: only likelihoods are graded.")
    limit: int | None = Field(None, description="Most rows; null: all.")
    seed: int = Field(0, description="Which rows are drawn where there are more than `limit`.")
    priority: Priority = 0

    @property
    def grader_names(self) -> list[str]:
        """The names of the graders: their own, else their type, numbered where it is there twice."""
        return unique([grader.name or grader.type for grader in self.graders])


class EvaluationRequest(_EvaluationPart):
    """What a person asks for: rows, models, graders."""

    name: str | None = Field(None, min_length=1, max_length=255, description="A name for people.")
    dataset: str | None = Field(
        None, max_length=64, description="Id of a dataset. The last answer of a row is its reference."
    )
    held_out_of: str | None = Field(
        None,
        max_length=64,
        description="Id of a job: evaluate on the rows that it held out (`training.validation_split`), or on "
        "those of its `validation_dataset`.",
    )
    rows: list[dict[str, Any]] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ROWS,
        description="Rows of your own: what templates call `item`. Without `input` each has `messages` or "
        "`prompt`.",
    )
    input: Annotated[list[TemplateMessage], Field(min_length=1, max_length=100)] | ModelText | None = Field(
        None,
        description="What the models are asked: messages whose contents are templates such as "
        "`{{item.question}}`; or the path of messages in the item, as `item.messages`; default: the row's "
        "own prompt.",
    )
    models: list[ModelChoice | ModelText] = Field(
        min_length=1,
        max_length=MAX_MODELS,
        description="The models to evaluate. A text is an alias that points to one model, else a base "
        "model in the models folder, else an adapter's id or name, else a base model of the Hub.",
    )
    baseline: ModelText | None = Field(
        None,
        description="Label of the model that the others are compared with; default: the first base model.",
    )
    graders: list[Grader] = Field([], max_length=MAX_GRADERS, description="What grades the answers.")
    sampling: EvaluationSampling = Field(EvaluationSampling(), description="How answers are sampled.")
    generate: bool = Field(
        True, description="false: nothing is generated; only `perplexity` graders have something to grade."
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description=f"Most rows; where there are more, so many are drawn. Default {DEFAULT_ROWS}; all inline "
        "rows.",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Which rows are drawn.")
    priority: Priority = 0

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [name for name in ("dataset", "held_out_of", "rows") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of `dataset`, `held_out_of` and `rows`"
                + (f", not {' and '.join(given)}" if given else "")
            )
        return self

    @model_validator(mode="after")
    def _grades_what_there_is(self) -> Self:
        if not self.generate and not self.graders:
            raise ValueError(
                "without `generate` there is nothing to do but for `perplexity` graders: add one"
            )
        others = [one.type for one in self.graders if not isinstance(one, PerplexityGrader)]
        if not self.generate and others:
            raise ValueError(f"`{others[0]}` grades an answer, and `generate` is false")
        return self

    @field_validator("input")
    @classmethod
    def _is_path(cls, value: list[TemplateMessage] | str | None) -> list[TemplateMessage] | str | None:
        if isinstance(value, str) and not value.strip("{} ").startswith("item."):
            raise ValueError("a path begins with `item.`, as in `item.messages`")
        return value


def unique(names: list[str]) -> list[str]:
    """Returns the names; one that is there already gets a number."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in range(2, len(names) + 2))
        found.append(next(one for one in (name, *numbered) if one not in found))
    return found
