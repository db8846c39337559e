"""The body of POST /v1/fine_tuning/jobs, and the native job spec that it becomes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.chat.request_parts import allow_only
from app.api.http.bodies.validation import describe
from app.api.openai.parameters import reject_parameter
from app.core.jobs import fine_tuning
from app.core.specs.job import JobSpec, LoraSpec, MetadataKey, MetadataValue, QuantizationSpec, TrainingSpec
from app.core.specs.methods import LEARNING_RATES, DpoSpec
from app.core.specs.patterns import SUFFIX
from app.core.specs.tracking import RunName, Tag, Tracker

Auto = Literal["auto"]

# OpenAI's hyperparameters and the native settings of the same meaning.
_SAME = {
    "n_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate_multiplier": "learning_rate",
}
# OpenAI's names of methods and ours.
_METHODS: Mapping[str, Literal["sft", "dpo"]] = {"supervised": "sft", "dpo": "dpo"}
_PARTS: Mapping[str, type[BaseModel]] = {
    "lora": LoraSpec,
    "training": TrainingSpec,
    "quantization": QuantizationSpec,
}


class SupervisedHyperparameters(BaseModel):
    """Each a number or `auto`; beside them any field of the native `lora`, `training` and `quantization`."""

    model_config = ConfigDict(extra="allow")

    n_epochs: Annotated[float, Field(gt=0, le=1000)] | Auto | None = Field(
        None, description="Passes over the file. auto: 3; more below 34 rows, fewer past 8,333."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto | None = Field(
        None, description="Rows that an optimizer step learns from. auto: 4."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=10_000)] | Auto | None = Field(
        None, description="Times 2e-4 (`supervised`) or 2e-5 (`dpo`). auto: 1."
    )


class DpoHyperparameters(SupervisedHyperparameters):
    """As those of `supervised`, and `beta`; beside them also the other fields of the native `dpo`."""

    beta: Annotated[float, Field(gt=0, le=1000)] | Auto | None = Field(
        None, description="How strongly the model is held near the one it starts from. auto: 0.1."
    )


class SupervisedMethod(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid")
    hyperparameters: SupervisedHyperparameters | None = Field(None, description="How to train.")


class DpoMethod(BaseModel):
    """How to train on preferences."""

    model_config = ConfigDict(extra="forbid")
    hyperparameters: DpoHyperparameters | None = Field(None, description="How to train.")


class Method(BaseModel):
    """The kind of training."""

    model_config = ConfigDict(extra="forbid")
    type: Annotated[str, allow_only("supervised", "dpo")] = Field(
        "supervised", description="`supervised` or `dpo`."
    )
    supervised: SupervisedMethod | None = Field(None, description="How to train, where `type` says so.")
    dpo: DpoMethod | None = Field(None, description="How to train on preferences, where `type` says so.")


class WandbIntegration(BaseModel):
    """How the job's run is named in Weights & Biases. The key is the worker's."""

    model_config = ConfigDict(extra="forbid")
    project: RunName = Field(description="The project.")
    name: RunName | None = Field(None, description="The run; null: the job's name, or else its id.")
    entity: RunName | None = Field(None, description="The user or team; null: that of the worker's key.")
    tags: list[Tag] | None = Field(None, max_length=50, description="Tags of the run.")


class Integration(BaseModel):
    """Where the job's metrics go, too."""

    model_config = ConfigDict(extra="forbid")
    type: Annotated[str, allow_only("wandb")] = Field(description="Always `wandb`.")
    wandb: WandbIntegration = Field(description="How the run is named.")


class FineTuningJobBody(BaseModel):
    """A fine-tuning job, in OpenAI's words."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        min_length=1, max_length=400, description="A base model's name; or an adapter's, to train it on."
    )
    training_file: str = Field(max_length=64, description="Id of a file, or of a native dataset.")
    validation_file: str | None = Field(None, max_length=64, description="Id of a file to evaluate on.")
    suffix: str | None = Field(
        None, max_length=64, pattern=SUFFIX, description="Part of the fine-tuned model's name."
    )
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Seed of data order and initialisation.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = Field(
        None, description="Words of your own about the job."
    )
    method: Method | None = Field(None, description="How to train.")
    hyperparameters: SupervisedHyperparameters | None = Field(
        None,
        description="Deprecated: the same as the hyperparameters of `method`, which go before.",
    )
    integrations: list[Integration] | None = Field(
        None, max_length=1, description="Weights & Biases, of which a worker has the package and the key."
    )

    name: str | None = Field(None, description="Not OpenAI's. Name of the job.")
    chat_template: str | None = Field(None, description="Not OpenAI's. As in the native job.")
    lora: LoraSpec | None = Field(None, description="Not OpenAI's. As in the native job.")
    quantization: QuantizationSpec | None = Field(None, description="Not OpenAI's. As in the native job.")
    training: TrainingSpec | None = Field(
        None, description="Not OpenAI's. As in the native job; goes before what follows from hyperparameters."
    )

    def as_spec(self, *, base_model: str, continue_from: str | None, rows: int) -> JobSpec:
        """The native job spec. Raises InvalidRequest."""
        chosen, place = self._hyperparameters()
        method = _METHODS[self._method.type]
        self._refuse_unknown(chosen, place)
        parts = {name: self._part(name, chosen, place) for name in _PARTS}
        self._refuse_twice(chosen, parts["training"], place)
        numbers = {name: value for name in _SAME if (value := getattr(chosen, name)) is not None}
        if self.seed is not None:
            parts["training"].setdefault("seed", self.seed)
        parts["training"] = fine_tuning.training_settings(
            fine_tuning.Hyperparameters(**numbers),
            parts["training"],
            base_learning_rate=LEARNING_RATES[method],
            rows=rows,
            is_validated=bool(self.validation_file or parts["training"].get("validation_split")),
        )
        given: dict[str, Any] = {
            "base_model": base_model,
            "dataset": self.training_file,
            "validation_dataset": self.validation_file,
            "continue_from": continue_from,
            "suffix": self.suffix or "",
            "metadata": self.metadata or {},
            "name": self.name,
            "chat_template": self.chat_template,
            "method": method,
            "dpo": self._preferences(chosen) if method == "dpo" else None,
            **self._tracking(),
            **{name: part for name, part in parts.items() if part},
        }
        return _validated(given)

    @property
    def _method(self) -> Method:
        return self.method or Method.model_validate({})

    def _tracking(self) -> dict[str, Any]:
        """The given integration as fields of a native job."""
        for integration in self.integrations or []:
            named = integration.wandb
            names = {"project": named.project, "run_name": named.name, "entity": named.entity}
            trackers = [Tracker.TENSORBOARD, Tracker.WANDB]
            return {"report_to": trackers, "tracking": {**names, "tags": named.tags or []}}
        return {}

    def _hyperparameters(self) -> tuple[SupervisedHyperparameters, str]:
        """The hyperparameters that apply, and their path in the body."""
        method = self._method
        for other in _METHODS:
            if other != method.type and getattr(method, other) is not None:
                reject_parameter(f"method.{other}", f"method.type is {method.type}; leave it out")
        own: SupervisedMethod | DpoMethod | None = getattr(method, method.type)
        if own and own.hyperparameters:
            return own.hyperparameters, f"method.{method.type}.hyperparameters"
        return self.hyperparameters or SupervisedHyperparameters(), "hyperparameters"

    def _refuse_unknown(self, chosen: SupervisedHyperparameters, place: str) -> None:
        known = set(_PARTS).union(*(model.model_fields for model in _PARTS.values()))
        if self._method.type == "dpo":
            known |= DpoSpec.model_fields.keys()
        for field in chosen.model_extra or {}:
            if field not in known:
                reject_parameter(
                    f"{place}.{field}", "there is no such hyperparameter, nor such a field of a job"
                )

    @staticmethod
    def _preferences(chosen: SupervisedHyperparameters) -> dict[str, Any]:
        """The given fields of the native `dpo`."""
        given = chosen.model_dump(exclude_none=True, include=set(DpoSpec.model_fields))
        extras = {
            name: value for name, value in (chosen.model_extra or {}).items() if name in DpoSpec.model_fields
        }
        return {name: value for name, value in (given | extras).items() if value != "auto"}

    def _part(self, name: str, chosen: SupervisedHyperparameters, place: str) -> dict[str, Any]:
        """The given fields of `lora`, `training` or `quantization`, also those among the hyperparameters."""
        extras = chosen.model_extra or {}
        nested = extras.get(name) or {}
        if not isinstance(nested, dict):
            reject_parameter(f"{place}.{name}", "it must be a JSON object")
        fields = {field: value for field, value in extras.items() if field in _PARTS[name].model_fields}
        own: BaseModel | None = getattr(self, name)
        return {**fields, **nested, **(own.model_dump(exclude_unset=True) if own else {})}

    @staticmethod
    def _refuse_twice(chosen: SupervisedHyperparameters, training: dict[str, Any], place: str) -> None:
        for theirs, ours in _SAME.items():
            if getattr(chosen, theirs) not in (None, "auto") and ours in training:
                reject_parameter(f"{place}.{theirs}", f"it says the same as {ours}; give one of them")


def _validated(given: dict[str, Any]) -> JobSpec:
    try:
        return JobSpec.model_validate(given)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise describe(problems, body=given, model=JobSpec) from None
