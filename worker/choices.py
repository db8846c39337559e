"""What a spec leaves to `auto`, decided from the device and the estimate; training and preflight ask here.

No model and no files: a table of cases tests it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.core.errors import InvalidRequest
from app.core.specs import JobSpec, QuantizationSpec, TrainingSpec
from worker.base_model import compute_dtype
from worker.device import Device
from worker.estimate import Batch, Memory, ModelShape, Plan, Precision, estimate

DEFAULT_MAX_SEQ_LENGTH = 2048
# The rest is for fragments, and for what other programs take meanwhile.
USABLE_SHARE = 0.9
DEFAULT_BATCH_SIZE = 4
# A pass takes as long as with so many tokens at least: it is launching kernels (7B on an H100 or H200).
_TOKENS_OF_LAUNCHES = 3000


def mixed_precision(training: TrainingSpec, device: Device) -> tuple[bool, bool]:
    """(fp16, bf16). `auto`: bfloat16 on a GPU that has it, float16 on another GPU, neither on a CPU.

    Raises InvalidRequest.
    """
    if training.fp16 is True and not device.is_cuda:
        raise InvalidRequest(
            "fp16 training needs a GPU.", param="training.fp16", hint='Set it to "auto" or false.'
        )
    if training.bf16 is True and device.is_cuda and not device.supports_bf16:
        raise InvalidRequest(
            f"{device.name} has no bfloat16.", param="training.bf16", hint='Set it to "auto" or false.'
        )
    if training.fp16 is True or training.bf16 is True:
        return training.fp16 is True, training.bf16 is True
    bf16 = training.bf16 == "auto" and device.is_cuda and device.supports_bf16
    return training.fp16 == "auto" and device.is_cuda and not bf16, bf16


def quantization(spec: JobSpec, device: Device) -> QuantizationSpec:
    """The spec's own, with a compute dtype that is the one of mixed precision.

    With two 16-bit types in one model every sum of both is float32: twice the memory and time.
    """
    fp16, bf16 = mixed_precision(spec.training, device)
    is_free = spec.quantization.bnb_4bit_compute_dtype == "auto" and device.is_cuda
    if not is_free or not (fp16 or bf16):
        return spec.quantization
    dtype = "float16" if fp16 else "bfloat16"
    return spec.quantization.model_copy(update={"bnb_4bit_compute_dtype": dtype})


def find_slow_products(spec: JobSpec, device: Device) -> str | None:
    """What to say where the spec asks for a type that the CPU multiplies without instructions of its own.

    On a CPU with AVX2 alone that takes 6 to 80 times as long as float32 (torch 2.13, oneDNN).
    """
    dtype = compute_dtype(quantization(spec, device), device)
    if device.is_cuda or dtype is torch.float32 or (dtype is torch.bfloat16 and device.supports_bf16):
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"This CPU has no instructions for products in {name}: they take many times as long as in "
        'float32. Leave quantization.bnb_4bit_compute_dtype on "auto".'
    )


def check_modules_to_save(spec: JobSpec, device: Device) -> None:
    """Modules that are trained whole are kept in float32, which only mixed precision lets meet 16-bit ones.

    Raises InvalidRequest.
    """
    is_mixed = any(mixed_precision(spec.training, device))
    if spec.lora.modules_to_save and not is_mixed and compute_dtype(spec.quantization, device).itemsize < 4:
        raise InvalidRequest(
            "modules_to_save needs mixed precision where the base model computes in 16 bits.",
            param="lora.modules_to_save",
            hint='Leave training.bf16 and training.fp16 on "auto", or set '
            'quantization.bnb_4bit_compute_dtype to "float32".',
        )


def max_seq_length(training: TrainingSpec, context_length: int | None) -> int:
    """How many tokens of a row are kept: never more than the base model can read."""
    longest = context_length or DEFAULT_MAX_SEQ_LENGTH
    return min(training.max_seq_length or DEFAULT_MAX_SEQ_LENGTH, longest)


@dataclass(frozen=True)
class Rows:
    """The lengths of the sequences to train on: rows, or rows packed. `scored`: tokens the loss counts."""

    longest: int
    shortest: int
    count: int
    scored: int  # of the sequence with the most

    @classmethod
    def measure(
        cls, lengths: Sequence[int], scored: Sequence[int], *, packed_length: int | None = None
    ) -> "Rows":
        """Of rows; with `packed_length`, of the sequences they fill."""
        if packed_length is None:
            return cls(max(lengths), min(lengths), len(lengths), max(scored))
        filled = min(packed_length, sum(lengths))
        return cls(filled, filled, -(-sum(lengths) // packed_length), min(filled, sum(scored)))


@dataclass(frozen=True)
class Settled:
    """What a job runs with, and the memory that takes."""

    training: TrainingSpec  # without any `auto` in its passes
    memory: Memory
    fits: bool


def settle(spec: JobSpec, device: Device, shape: ModelShape, rows: Rows, *, free_bytes: int) -> Settled:
    """Passes and checkpointing: the fastest that fit, else the smallest."""
    settled = [
        Settled(training, memory, memory.total <= USABLE_SHARE * free_bytes)
        for training in _candidates(spec.training, is_cuda=device.is_cuda, longest=rows.longest)
        for memory in [_estimate(spec, training, device, shape, rows)]
    ]
    fitting = [one for one in settled if one.fits]
    return fitting[0] if fitting else min(settled, key=lambda one: one.memory.total)


def is_open(training: TrainingSpec) -> bool:
    """Whether there is anything to settle."""
    return "auto" in (training.gradient_checkpointing, training.per_device_train_batch_size)


def _candidates(training: TrainingSpec, *, is_cuda: bool, longest: int) -> list[TrainingSpec]:
    """Every way to run the same optimizer steps, the fastest first."""
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    checkpointing = training.gradient_checkpointing
    in_a_step = DEFAULT_BATCH_SIZE * accumulation
    sizes = [n for n in range(in_a_step, 0, -1) if in_a_step % n == 0] if size == "auto" else [size]
    found = []
    for rows in sizes:
        passes = in_a_step // rows if size == "auto" else accumulation
        for recompute in [False, True] if checkpointing == "auto" else [checkpointing]:
            least = _TOKENS_OF_LAUNCHES if is_cuda else 0
            cost = passes * max(rows * longest, least) * (4 / 3 if recompute else 1)
            changes = {
                "per_device_train_batch_size": rows,
                "gradient_accumulation_steps": passes,
                "gradient_checkpointing": recompute,
            }
            found.append((cost, training.model_copy(update=changes)))
    return [candidate for _cost, candidate in sorted(found, key=lambda pair: pair[0])]


def _estimate(spec: JobSpec, training: TrainingSpec, device: Device, shape: ModelShape, rows: Rows) -> Memory:
    size, checkpointing = training.per_device_train_batch_size, training.gradient_checkpointing
    assert size != "auto"
    assert checkpointing != "auto"
    sequences = min(size, rows.count)
    batch = Batch(
        sequences,
        rows.longest,
        sequences * rows.scored,
        has_mask=training.packing or (sequences > 1 and rows.shortest < rows.longest),
    )
    settled = spec.model_copy(update={"training": training})
    return estimate(shape, make_plan(settled, device, checkpointing=checkpointing), batch)


def make_plan(spec: JobSpec, device: Device, *, checkpointing: bool) -> Plan:
    """What the estimate asks of a spec."""
    return Plan(
        precision=precision(spec, device),
        quantization=spec.quantization,
        lora=spec.lora,
        optimizer=spec.training.optim,
        checkpointing=checkpointing,
        accumulates=spec.training.gradient_accumulation_steps > 1,
        is_cuda=device.is_cuda,
    )


def precision(spec: JobSpec, device: Device) -> Precision:
    """Sizes of numbers, as mixed precision and the base model's own type make them."""
    fp16, bf16 = mixed_precision(spec.training, device)
    model = compute_dtype(quantization(spec, device), device)
    if not (fp16 or bf16):
        # Without autocast PEFT casts an adapter's input to float32.
        return Precision(model=model.itemsize, products=4, residual=model.itemsize)
    is_one = model is (torch.float16 if fp16 else torch.bfloat16)
    return Precision(model=model.itemsize, products=2, residual=2 if is_one else 4)
