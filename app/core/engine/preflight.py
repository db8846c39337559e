"""Requests and results of preflight and preview, between the API and the engine. Knows no model."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from app.core.engine.serving import Serving
from app.core.engine.wire import Wire
from app.core.specs.job import JobSpec
from app.core.specs.patterns import MODEL_NAME
from app.core.specs.resources import Strategy

MAX_LINES = 100


class DatasetRef(Wire):
    """A dataset and where its rows are in the artifact store."""

    artifact: str
    rows: int
    size_bytes: int


class PreflightRequest(Wire):
    """A job to estimate without running it."""

    spec: JobSpec
    dataset: DatasetRef
    validation_dataset: DatasetRef | None = None
    submitted_at: datetime | None = Field(None, description="When the job was submitted; null: not yet.")


class HeldOut(Wire):
    """The rows that a job holds out for evaluation, by their lines in the dataset."""

    lines: list[int]


class CheckRequest(Wire):
    """A job whose base model is to be looked at, before the job is queued."""

    spec: JobSpec


class Checked(Wire):
    """The job can run on its base model, as far as the model's config and tokenizer tell."""

    is_here: bool  # False: the base model is not on that machine, so it was not looked at


class MemoryFit(Wire):
    """Whether a job fits into the memory that serving leaves free now, and its peak memory in bytes."""

    fits: bool
    bytes: int


class PreviewRequest(Wire):
    """Rows to show as the model will see them."""

    base_model: str = Field(pattern=MODEL_NAME)
    dataset: DatasetRef
    after: int = 0
    limit: int
    assistant_only_loss: bool
    max_seq_length: int | None = None


class Notice(Wire):
    """Something that the person should know before the job starts."""

    code: str = Field(description="A stable word for programs.", examples=["rows_cut"])
    message: str = Field(description="What it is, for a person.")


class Lines(Wire):
    """Rows of the file that something happens to."""

    count: int = Field(description="How many rows; reckoned where the figures come from a sample.")
    lines: list[int] = Field(description=f"Their lines in the file, the first {MAX_LINES}.")


class LengthBucket(Wire):
    """One bar of the histogram."""

    up_to: int = Field(description="Tokens of a row, at most; more than the bar before.")
    rows: int = Field(description="Rows of such a length.")


class TokenFigures(Wire):
    """Lengths of the rows to train on, in tokens, as they are after the cut.

    Of preferences, each answer with its prompt counts as a row.
    """

    total: int = Field(description="In one epoch.")
    mean: float = Field(description="Mean of a row.")
    p50: int = Field(description="Half of the rows are at most so long.")
    p95: int = Field(description="95% of the rows are at most so long.")
    max: int = Field(description="The longest row.")
    histogram: list[LengthBucket] = Field(description="Rows by length; each bar reaches twice as far.")


class MemoryFigures(Wire):
    """Peak memory on the worker's device, in bytes; of a job on several, on each of them."""

    weights: int = Field(
        description="The frozen base model; where GPUs divide it, the part of one, with the layers that it "
        "collects from the others at a time."
    )
    lora: int = Field(description="The adapter's weights and their gradients.")
    optimizer: int = Field(description="The optimizer's state that stays on the device.")
    activations: int = Field(description="What the forward pass keeps for the backward pass, and the loss.")
    overhead: int = Field(description="The driver's and the libraries' own.")
    total: int = Field(description="All of these.")
    paged: int = Field(
        description="Optimizer state in paged memory; it leaves the device when others need room, so it is "
        "not in the total."
    )


class DeviceFigures(Wire):
    """The worker's device."""

    name: str = Field(description="As the driver names it.")
    memory_bytes: int = Field(description="All of its memory.")
    free_bytes: int = Field(description="Free for a job now; what serving holds is free for it.")


class Chosen(Wire):
    """What the job would run with where the spec says `auto`, or leaves it open."""

    gradient_checkpointing: bool = Field(description="Whether activations are computed twice.")
    per_device_train_batch_size: int = Field(description="Rows in one forward pass.")
    gradient_accumulation_steps: int = Field(description="Forward passes in an optimizer step.")
    compute_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        description="Type of the base model's matrix products."
    )
    mixed_precision: Literal["none", "fp16", "bf16"] = Field(description="Type of the adapter's products.")
    max_seq_length: int = Field(description="Rows are cut to so many tokens.")
    strategy: Strategy | None = Field(
        None,
        description="How several GPUs share the base model: each holds the whole of it (`ddp`), or they "
        "divide it (`fsdp`); null: the job has one GPU.",
    )
    strategy_reason: str | None = Field(None, description="Why they share it so, for a person.")


class DiskFigures(Wire):
    """Space that the job needs on the worker's disk, in bytes."""

    checkpoints: int = Field(description="While it runs: two checkpoints and the one being written.")
    adapter: int = Field(
        description="The finished adapter with its tokenizer, and those of checkpoints that are kept."
    )
    free: int = Field(description="Free on the disk that holds the worker's data.")


class TimeFigures(Wire):
    """How long the training may take, loading and evaluation losses left out."""

    seconds: float = Field(description="For all optimizer steps.")
    sample_seconds: float = Field(
        0.0,
        description="For sample answers (`training.sample_prompts`) and for the evaluation at the end "
        "(`evaluate`), in addition; a rough guess.",
    )
    reference_seconds: float = Field(
        0.0,
        description="For the reference log-probabilities of `dpo` and `kto`, before the first step, in "
        "addition.",
    )
    tokens_per_second: float = Field(description="Padding left out.")
    basis: Literal["measured", "guess"] = Field(
        description="`measured`: the speed of the last finished job of this base model with the same "
        "packing, quantization and number of GPUs. `guess`: from the job's batches and the speed of matrix "
        "products that was measured on the device; expect a factor of two either way."
    )


class Preflight(Wire):
    """What a job would do, before it starts."""

    rows: int = Field(description="Rows of the dataset.")
    sampled_rows: int | None = Field(
        description="So many rows were read, spread evenly, and the rest reckoned; null: all were."
    )
    training_rows: int = Field(description="Rows to train on.")
    evaluation_rows: int = Field(description="Rows held out to evaluate on.")
    tokens: TokenFigures = Field(description="How long the rows are.")
    trained_token_share: float = Field(description="Share of the tokens that the loss counts.")
    truncated: Lines = Field(description="Rows longer than `max_seq_length`, which are cut.")
    dropped: Lines = Field(description="Rows left out: no token to learn from remains.")
    optimizer_steps: int = Field(description="Optimizer steps in all.")
    padding_share: float = Field(description="Share of what is computed that is padding, in the first epoch.")
    memory: MemoryFigures = Field(description="Peak memory, with what `chosen` says.")
    device: DeviceFigures = Field(description="Where the job would run.")
    fits: bool = Field(description="Whether the total is at most 90% of the free memory.")
    chosen: Chosen = Field(description="What the job would run with.")
    disk: DiskFigures = Field(description="Space that the job needs.")
    time: TimeFigures = Field(description="How long the training may take.")
    serving: Serving = Field(description="How the finished adapter would be served.")
    warnings: list[Notice] = Field(description="What should be known first; empty: nothing.")


class PreviewToken(Wire):
    """One token of a row."""

    text: str = Field(description="Empty where a character takes several tokens: the last one shows it.")
    id: int = Field(description="Its number in the model's vocabulary.")
    trained: bool = Field(description="Whether the loss counts it.")


class PreviewAnswer(Wire):
    """An answer of a row of preferences, after the prompt."""

    name: Literal["chosen", "rejected", "completion"] = Field(description="The row's field that has it.")
    is_good: bool = Field(description="Whether it is the preferred one, or is labelled good.")
    tokens: list[PreviewToken] = Field(description="Its tokens, cut.")
    token_count: int = Field(description="How many tokens it has before it is cut.")


class PreviewRow(Wire):
    """A row as the model will see it."""

    line: int = Field(description="The row's line in the file.")
    tokens: list[PreviewToken] = Field(
        description="The row, rendered and cut; of a row of preferences, its prompt."
    )
    token_count: int = Field(0, description="How many tokens these are before they are cut.")
    answers: list[PreviewAnswer] = Field(
        [], description="The answers of a row of preferences: the chosen and the rejected one, or one."
    )
    truncated: bool = Field(description="Whether the row is longer than `max_seq_length` and was cut.")
    problem: str | None = Field(description="Why the row can't be rendered; a job would fail on it.")
    notices: list[str] = Field(
        [], description="What the chat template leaves out of the row, or adds to it; empty: nothing."
    )


class Preview(Wire):
    """Some rows, and the line after which the next page begins."""

    data: list[PreviewRow] = Field(description="The rows of this page.")
    next: int | None = Field(description="For `after`; null at the end.")
    warnings: list[Notice] = Field(description="What should be known about them.")
