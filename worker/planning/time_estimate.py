"""Estimates the time of a job's optimizer steps from its shapes, its batches and the device's measured rate.

A pass over a batch takes as long as its matrix products, at the share of the rate that jobs reach, or as long
as the host takes to launch the kernels of its layers, whichever is longer. The shares were measured with a 7B
model on an H100 (benchmarks/results/training-h100.json), and with one of 135M on a CPU. Of a mixture of
experts, the weights that a token passes through count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from app.core.specs.job import TrainingSpec
from worker.models.device import Device
from worker.planning.batch_size import PlannedJob
from worker.planning.memory_estimate import ModelShape
from worker.planning.optimizations import MAX_GRAPH_TOKENS, plan_optimizations

# Shares of the device's rate that the products of a job reach.
_OPTIMIZED_SHARE, _PLAIN_SHARE, _CPU_SHARE = 0.71, 0.4, 0.65
# Reading and dequantizing the weights for a pass takes a GPU as long as so many more tokens.
_TOKENS_OF_WEIGHTS = 200
# Launching the kernels of one layer, forward and backward, and where checkpointing computes it twice.
_GPU_LAYER_SECONDS, _CPU_LAYER_SECONDS, _TWICE = 0.0078, 0.005, 4 / 3
# A batch of a new size runs without its CUDA graph, which is captured later: about so many steps of a job.
_STEPS_BEFORE_GRAPHS = 32
# The first step compiles kernels.
_FIRST_STEP_SECONDS = 2.0
# Where no rate was measured: data center GPUs with bfloat16, older ones, and two cores.
_BF16_GPU_RATE, _OTHER_GPU_RATE, _CPU_RATE = 3e14, 5e13, 1e11


@dataclass(frozen=True)
class TimeSettings:
    """What the time depends on besides the model's shape and the batches."""

    rate: float  # operations a second of a large matrix product
    is_cuda: bool
    is_optimized: bool  # LoRA in one autograd function
    is_padding_free: bool
    has_graphs: bool  # CUDA graphs for short batches
    checkpointing: bool

    @classmethod
    def plan(cls, job: PlannedJob, training: TrainingSpec) -> "TimeSettings":
        """From a job, and its settings without `auto`."""
        spec = job.spec.model_copy(update={"training": training})
        optimizations = plan_optimizations(spec, job.device, job.family, job.path, divides_base=job.parts > 1)
        return cls(
            rate=job.device.matrix_rate or _assume_rate(job.device),
            is_cuda=job.device.is_cuda,
            is_optimized=optimizations.fused_lora_dtype is not None,
            is_padding_free=bool(optimizations.varlen_kernels),
            has_graphs=optimizations.cuda_graphs,
            checkpointing=bool(training.gradient_checkpointing),
        )


def estimate_seconds(
    shape: ModelShape,
    settings: TimeSettings,
    batches: Sequence[Sequence[int]],
    *,
    steps: int,
    accumulation: int = 1,
    row_length: float = 0.0,
) -> float:
    """The time of so many optimizer steps of `accumulation` passes over batches like these.

    `batches`: lengths of the sequences in each. `row_length`: how many tokens the attention of a token is
    over, on average of the tokens.
    """
    tokens = [_count_tokens(batch, settings) for batch in batches]
    launch = _launch_seconds(shape, settings)
    products = [_product_seconds(shape, settings, count, row_length) for count in tokens]
    eager = mean(max(launch, seconds) for seconds in products)
    if not settings.is_cuda:
        return steps * accumulation * eager
    recorded = mean(
        seconds if settings.has_graphs and count <= MAX_GRAPH_TOKENS else max(launch, seconds)
        for count, seconds in zip(tokens, products, strict=True)
    )
    first = min(steps, _STEPS_BEFORE_GRAPHS)
    return _FIRST_STEP_SECONDS + accumulation * (first * eager + (steps - first) * recorded)


def estimate_reference_seconds(
    shape: ModelShape,
    settings: TimeSettings,
    batches: Sequence[Sequence[int]],
    *,
    passes: int,
    row_length: float,
) -> float:
    """The time of so many passes over batches like these, forward alone."""
    whole = estimate_seconds(shape, settings, batches, steps=passes, row_length=row_length)
    # As in count_operations: forward, the gradients of inputs, and with checkpointing forward once more.
    return whole / (3 if settings.checkpointing else 2)


def estimate_token_seconds(shape: ModelShape, settings: TimeSettings, *, rows: int) -> float:
    """The time of generating one more token for each of so many texts, with a cache of their keys."""
    forward = count_operations(shape, checkpointing=False, row_length=0) / 2
    share = _PLAIN_SHARE if settings.is_cuda else _CPU_SHARE
    extra = _TOKENS_OF_WEIGHTS if settings.is_cuda else 0
    of_layer = _GPU_LAYER_SECONDS if settings.is_cuda else _CPU_LAYER_SECONDS
    # A forward pass launches about a third of the kernels of both passes.
    return max(shape.layers * of_layer / 3, (rows + extra) * forward / (share * settings.rate))


def count_operations(shape: ModelShape, *, checkpointing: bool, row_length: float) -> float:
    """Floating-point operations of training for one token.

    A frozen weight takes two forward and two for the gradient of its input; an adapter's takes two more for
    its own. Attention is causal: over half of a row on average.
    """
    in_layer = 2 * shape.hidden * (shape.query_width + shape.key_width)
    in_layer += (3 if shape.is_gated else 2) * shape.hidden * shape.mlp_width
    weights = shape.layers * in_layer + shape.hidden * shape.vocabulary
    forward = 2 * weights + 2 * row_length * shape.query_width * shape.layers
    attention_backward = 3 * row_length * shape.query_width * shape.layers
    return forward * (3 if checkpointing else 2) + attention_backward + 6 * shape.trained_weights


def _count_tokens(lengths: Sequence[int], settings: TimeSettings) -> int:
    return sum(lengths) if settings.is_padding_free else len(lengths) * max(lengths)


def _product_seconds(shape: ModelShape, settings: TimeSettings, tokens: int, row_length: float) -> float:
    share, extra = _CPU_SHARE, 0
    if settings.is_cuda:
        share, extra = _OPTIMIZED_SHARE if settings.is_optimized else _PLAIN_SHARE, _TOKENS_OF_WEIGHTS
    operations = count_operations(shape, checkpointing=settings.checkpointing, row_length=row_length)
    return (tokens + extra) * operations / (share * settings.rate)


def _launch_seconds(shape: ModelShape, settings: TimeSettings) -> float:
    of_layer = _GPU_LAYER_SECONDS if settings.is_cuda else _CPU_LAYER_SECONDS
    return shape.layers * of_layer * (_TWICE if settings.checkpointing else 1)


def _assume_rate(device: Device) -> float:
    if not device.is_cuda:
        return _CPU_RATE
    return _BF16_GPU_RATE if device.supports_bf16 else _OTHER_GPU_RATE
