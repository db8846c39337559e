"""What a job request may contain: the settings of the reference recipe under their own names, validated.

Field names and defaults are those of the reference recipe (Llama-2-7b-chat with NF4 QLoRA). The worker turns
a spec into trainer settings in `worker/training/config.py`; nothing here knows an ML library.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from app.core.specs.export import JobPush
from app.core.specs.methods import (
    LEARNING_RATES,
    PREFERENCE_METHODS,
    DpoSpec,
    KtoSpec,
    Method,
    OrpoSpec,
    PreferenceSpec,
)
from app.core.specs.patterns import METADATA_KEY, MODEL_NAME, MODULE_NAME, NAME, SUFFIX
from app.core.specs.priority import Priority
from app.core.specs.resources import ResourcesSpec
from app.core.specs.spec import Spec
from app.core.specs.template_syntax import find_problem
from app.core.specs.tracking import Tracker, Trackers, TrackingSpec

Auto = Literal["auto"]
ModuleNames = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200, pattern=MODULE_NAME)]],
    Field(min_length=1, max_length=64),
]
SamplePrompts = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=4000)]], Field(min_length=1, max_length=8)
]
MetadataKey = Annotated[str, Field(max_length=64, pattern=METADATA_KEY)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

_MAX_STEPS = 100_000_000

Optimizer = Literal[
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adamw_bnb_8bit",
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "paged_lion_32bit",
    "paged_lion_8bit",
]
Scheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
]


class LoraSpec(Spec):
    """The low-rank adapter (Hu et al. 2021; the names are PEFT's)."""

    r: int = Field(64, ge=1, le=1024, description="Rank of the update matrices.")
    alpha: float = Field(16, ge=1e-6, le=1e6, description="Scale: the update is multiplied by alpha / r.")
    dropout: Fraction = Field(0.1, description="Dropout on the adapter's input while training.")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Which biases are trained too. With any, the adapter takes the general path of the "
        "engine, which is slower.",
    )
    target_modules: ModuleNames | Literal["all-linear"] | None = Field(
        None,
        description="Modules that get an adapter: names, each of which must match, `all-linear`, or null: "
        "PEFT's default for the model's family, `all-linear` where it has none.",
        examples=["all-linear", ["q_proj", "v_proj"]],
    )
    modules_to_save: ModuleNames | None = Field(
        None,
        description="Modules that are trained whole and saved with the adapter. Such an adapter takes the "
        "general path of the engine, which is slower.",
        examples=[["lm_head"]],
    )
    use_rslora: bool = Field(
        False,
        description="Rank-stabilized LoRA: the update is multiplied by alpha / √r (Kalajdzievski 2023).",
    )
    use_dora: bool = Field(
        False,
        description="DoRA: magnitude and direction are trained apart (Liu et al. 2024). Such an adapter "
        "takes the general path of the engine, which is slower.",
    )


class QuantizationSpec(Spec):
    """How the frozen base model is held in memory (Dettmers et al. 2023; the names are bitsandbytes')."""

    load_in_4bit: bool = Field(
        True, description="4-bit base weights (QLoRA). False: 16-bit, or 32-bit on a CPU."
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="The 4-bit number format.")
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Type of the matrix products. auto: bfloat16 where the device has it, else float16; "
        "float32 on a CPU.",
    )
    bnb_4bit_use_double_quant: bool = Field(False, description="Quantize the quantization constants as well.")

    @property
    def label(self) -> str:
        """The settings in one word, as `nf4-auto`; different settings have different words."""
        constants = "-double" if self.bnb_4bit_use_double_quant else ""
        kind = f"{self.bnb_4bit_quant_type}{constants}" if self.load_in_4bit else "unquantized"
        return f"{kind}-{self.bnb_4bit_compute_dtype}"


class TrainingSpec(Spec):
    """The training run (the names are transformers' TrainingArguments')."""

    num_train_epochs: float = Field(1, ge=1e-6, le=1000, description="Passes over the dataset.")
    max_steps: int = Field(
        -1, ge=-1, le=_MAX_STEPS, description="Optimizer steps; -1: as many as the epochs make."
    )
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        4,
        description="Rows in one forward pass. auto: an optimizer step learns from 4 times "
        "gradient_accumulation_steps rows, in the passes that are fastest of those that fit the memory.",
    )
    per_device_eval_batch_size: int = Field(4, ge=1, le=1024, description="Rows in one evaluation pass.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=4096, description="Forward passes in an optimizer step."
    )
    gradient_checkpointing: bool | Auto = Field(
        "auto", description="Recompute activations in the backward pass: less memory, more time."
    )
    optim: Optimizer = Field("paged_adamw_32bit", description="Optimizer.")
    learning_rate: float = Field(
        LEARNING_RATES["sft"],
        gt=0,
        le=10,
        description=f"Peak learning rate; {LEARNING_RATES['dpo']:g} where `method` is not `sft` and none is "
        "named.",
    )
    weight_decay: float = Field(0.001, ge=0, le=100, description="Decoupled weight decay.")
    lr_scheduler_type: Scheduler = Field("constant", description="How the learning rate changes.")
    warmup_ratio: Fraction = Field(
        0.03, description="Share of the steps that warm up, where the scheduler does."
    )
    max_grad_norm: float = Field(
        0.3, ge=0, le=1e6, description="Gradients are clipped to this norm; 0: never."
    )
    fp16: bool | Auto = Field("auto", description="Mixed precision in float16.")
    bf16: bool | Auto = Field(
        "auto", description="Mixed precision in bfloat16. auto: where the device has it."
    )
    group_by_length: bool = Field(True, description="Put rows of like length into one batch: less padding.")
    max_seq_length: int | None = Field(
        None,
        ge=8,
        le=1 << 24,
        description="Rows are cut to so many tokens; null: the base model's own context, at most 2048.",
    )
    packing: bool = Field(False, description="Fill every sequence with several rows. Only for `sft`.")
    assistant_only_loss: bool = Field(
        False,
        description="Learn from the assistant's turns alone. (prompt + completion rows always learn from "
        "the completion alone, and preferences from the answers.)",
    )
    neftune_noise_alpha: float | None = Field(
        None, ge=1e-6, le=1000, description="NEFTune noise on the embeddings. Only for `sft`."
    )
    logging_steps: int = Field(25, ge=1, le=_MAX_STEPS, description="A metrics event every so many steps.")
    save_steps: int = Field(25, ge=1, le=_MAX_STEPS, description="A checkpoint every so many steps.")
    keep_checkpoints: int = Field(
        0,
        ge=0,
        le=100,
        description="Keep the adapter at the end of each epoch, the newest so many of them: they answer, and "
        "can be downloaded, beside the finished one.",
    )
    eval_steps: int | None = Field(
        None, ge=1, le=_MAX_STEPS, description="Evaluate every so many steps; null: at the end."
    )
    validation_split: Fraction = Field(0.0, description="Share of the rows held out for evaluation.")
    early_stopping_patience: int | None = Field(
        None, ge=1, le=_MAX_STEPS, description="Stop after so many evaluations without a better loss."
    )
    sample_prompts: SamplePrompts | Literal["auto", "none"] = Field(
        "auto",
        description="Prompts that the model answers before training, at each evaluation and at the end. "
        "auto: those of the first three rows to evaluate on, where there are any, at as many evaluations as "
        "a twentieth of the training time allows. none: no sample answers.",
        examples=[["How do I cancel a job?"]],
    )
    sample_max_new_tokens: int = Field(
        64,
        ge=1,
        le=512,
        description="Most tokens of an answer to one of sample_prompts, and of one of the final evaluation.",
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="Seed of data order, initialisation and dropout.")

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.fp16 is True and self.bf16 is True:
            raise ValueError(
                "fp16 and bf16 exclude each other: set one of them to false or leave both on auto"
            )
        if self.max_steps == 0:
            raise ValueError(
                "max_steps is 0: use -1 for as many steps as the epochs make, or a positive number"
            )
        return self


class JobSpec(Spec):
    """A fine-tuning job. Only `base_model` and `dataset` are needed; the rest is the reference recipe."""

    base_model: str = Field(
        pattern=MODEL_NAME,
        max_length=200,
        description="A Hub id, or the name of a folder in the models folder (`GET /models`).",
        examples=["SmolLM2-135M-Instruct", "NousResearch/Llama-2-7b-chat-hf"],
    )
    dataset: str = Field(
        max_length=64, description="Id of an uploaded dataset.", examples=["ds_4kq1v9x2m7ahc3zt"]
    )
    validation_dataset: str | None = Field(
        None,
        max_length=64,
        description="Id of an uploaded dataset to evaluate on, instead of training.validation_split.",
    )
    continue_from: str | None = Field(
        None,
        max_length=400,
        description="Id or name of an adapter whose weights the job starts from; `lora`, "
        "`quantization` and `chat_template` are that adapter's where they are left out.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        pattern=NAME,
        description="Name of the job, and of its adapter; an adapter's name that is taken gets a number.",
        examples=["support-bot"],
    )
    suffix: str | None = Field(
        None,
        max_length=64,
        pattern=SUFFIX,
        description="Names the adapter as OpenAI does, `ft:<base model>:tunesmith:<suffix>:<id>`, instead of "
        "after the job. May be empty.",
    )
    priority: Priority = 0
    metadata: Metadata = Field(
        {}, description="Words of your own about the job; `GET /v1/fine_tuning/jobs` filters by them."
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        max_length=32_768,
        description="A chat template (Jinja) instead of the base model's own; it stays with the adapter. "
        "`{% generation %}` markers may enclose what the assistant writes.",
    )
    method: Method = Field(
        "sft",
        description="`sft`: learn to write the answers of the dataset. `dpo`, `orpo`: learn which of two "
        "answers is preferred. `kto`: learn from answers that are labelled good or bad.",
    )
    dpo: DpoSpec | None = Field(None, description="Settings of the method `dpo`.")
    kto: KtoSpec | None = Field(None, description="Settings of the method `kto`.")
    orpo: OrpoSpec | None = Field(None, description="Settings of the method `orpo`.")
    evaluate: bool = Field(
        True,
        description="Compare the adapter with the base model on up to 20 rows that were held out, as the job "
        "ends. Without training.validation_split or validation_dataset there are none.",
    )
    report_to: Trackers = Field(
        [Tracker.TENSORBOARD],
        description="Trackers that get the job's metrics. `tensorboard` writes files on its worker's disk; "
        "the others need their packages there, and take their keys from the worker's environment.",
        examples=[["tensorboard", "mlflow"]],
    )
    push_to_hub: JobPush | None = Field(
        None,
        description="Push the finished adapter to the Hub, with the worker's HF_TOKEN. Where that fails, the "
        "job has succeeded all the same; `push` of `GET /jobs/{id}` shows it, and it can be retried.",
        examples=[{"repository": "me/support-bot", "tags": ["support"]}],
    )
    lora: LoraSpec = LoraSpec()
    quantization: QuantizationSpec = QuantizationSpec()
    training: TrainingSpec = TrainingSpec()
    resources: ResourcesSpec = ResourcesSpec()
    tracking: TrackingSpec = TrackingSpec()

    @property
    def preferences(self) -> PreferenceSpec | None:
        """The settings of the job's method; None for `sft`, which has none besides `training`."""
        settings: dict[str, PreferenceSpec | None] = {"dpo": self.dpo, "kto": self.kto, "orpo": self.orpo}
        return settings.get(self.method)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_method(cls, given: Any) -> Any:
        """Settings of a preference method that are left out: its own, and its learning rate."""
        method = given.get("method") if isinstance(given, dict) else None
        if method not in PREFERENCE_METHODS:
            return given
        filled = dict(given)
        if filled.get(method) is None:
            filled[method] = {}
        training = filled.get("training", {})
        if isinstance(training, TrainingSpec):
            training = training.model_dump(exclude_unset=True)
        if isinstance(training, dict):
            filled["training"] = {"learning_rate": LEARNING_RATES[method], **training}
        return filled

    @field_validator("chat_template")
    @classmethod
    def _template_is_readable(cls, template: str | None) -> str | None:
        problem = None if template is None else find_problem(template)
        if problem:
            raise ValueError(f"the chat template can't be read: {problem}")
        return template

    @model_validator(mode="after")
    def _settings_are_of_the_method(self) -> Self:
        for other in PREFERENCE_METHODS:
            if other != self.method and getattr(self, other) is not None:
                raise ValueError(
                    f"{other} is given, but method is {self.method}: leave {other} out, or set method to "
                    f"{other}"
                )
        only_sft = [name for name in ("packing", "neftune_noise_alpha") if getattr(self.training, name)]
        if only_sft and self.method != "sft":
            raise ValueError(
                f"training.{only_sft[0]} is for the method sft, not for {self.method}: leave it out"
            )
        return self

    @property
    def fsdp_obstacle(self) -> str | None:
        """Why GPUs can't divide this job's base model among them, and what to do; None: they can."""
        lora = self.lora
        if self.quantization.load_in_4bit:
            return (
                "divides no base model in 4 bits: PyTorch's FSDP2 leaves bitsandbytes' 4-bit weights whole "
                "on every GPU (bitsandbytes issue 1945). Set quantization.load_in_4bit to false, or "
                "resources.strategy to ddp"
            )
        if self.resources.nodes > 1:
            return "is for the GPUs of one host: set resources.nodes to 1, or resources.strategy to ddp"
        if self.method != "sft":
            return f"is for the method sft, not for {self.method}: set resources.strategy to ddp"
        if lora.bias != "none" or lora.modules_to_save or lora.use_dora:
            return (
                "trains LoRA's matrices alone, and no weights of the base model: leave out lora.bias, "
                "lora.modules_to_save and lora.use_dora, or set resources.strategy to ddp"
            )
        return None

    @model_validator(mode="after")
    def _strategy_is_possible(self) -> Self:
        if self.resources.strategy == "fsdp" and self.fsdp_obstacle:
            raise ValueError(f"resources.strategy fsdp {self.fsdp_obstacle}")
        return self

    @model_validator(mode="after")
    def _evaluation_has_rows(self) -> Self:
        training = self.training
        if self.validation_dataset and training.validation_split:
            raise ValueError("validation_dataset and training.validation_split exclude each other")
        needs_rows = [name for name in ("early_stopping_patience", "eval_steps") if getattr(training, name)]
        if needs_rows and not (self.validation_dataset or training.validation_split):
            raise ValueError(
                f"training.{needs_rows[0]} needs rows to evaluate on: set training.validation_split, for "
                "example 0.1, or validation_dataset"
            )
        return self
