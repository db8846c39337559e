"""What a spec leaves to `auto`, decided from the device alone, for training and preflight.

Knows no model and no files. Batch size and checkpointing depend on memory: see batch_size.py.
"""

import torch

from app.core.errors import InvalidRequest
from app.core.specs.job import JobSpec, QuantizationSpec, TrainingSpec
from worker.models.base_model import compute_dtype
from worker.models.device import Device
from worker.planning.memory_estimate import Precision

DEFAULT_MAX_SEQ_LENGTH = 2048


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
    """The spec's quantization, with the type of mixed precision for an `auto` compute dtype.

    With two 16-bit types in one model, every sum of both is float32: twice the memory and time.
    """
    fp16, bf16 = mixed_precision(spec.training, device)
    is_automatic = spec.quantization.bnb_4bit_compute_dtype == "auto" and device.is_cuda
    if not is_automatic or not (fp16 or bf16):
        return spec.quantization
    dtype = "float16" if fp16 else "bfloat16"
    return spec.quantization.model_copy(update={"bnb_4bit_compute_dtype": dtype})


def find_slow_products(spec: JobSpec, device: Device) -> str | None:
    """A warning where the CPU has no instructions for the compute dtype that the spec asks for; else None.

    With AVX2 alone, 16-bit products take 6 to 80 times as long as float32 (torch 2.13, oneDNN).
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
    """Raise InvalidRequest where float32 `modules_to_save` meet 16-bit inputs without mixed precision."""
    is_mixed = any(mixed_precision(spec.training, device))
    if spec.lora.modules_to_save and not is_mixed and compute_dtype(spec.quantization, device).itemsize < 4:
        raise InvalidRequest(
            "modules_to_save needs mixed precision where the base model computes in 16 bits.",
            param="lora.modules_to_save",
            hint='Leave training.bf16 and training.fp16 on "auto", or set '
            'quantization.bnb_4bit_compute_dtype to "float32".',
        )


def max_seq_length(training: TrainingSpec, context_length: int | None) -> int:
    """The number of tokens that rows are cut to: at most the base model's context."""
    longest = context_length or DEFAULT_MAX_SEQ_LENGTH
    return min(training.max_seq_length or DEFAULT_MAX_SEQ_LENGTH, longest)


def has_automatic_batch(training: TrainingSpec) -> bool:
    """Whether batch size or checkpointing is `auto`."""
    return "auto" in (training.gradient_checkpointing, training.per_device_train_batch_size)


def precision(spec: JobSpec, device: Device) -> Precision:
    """Bytes of the numbers of a job, from its mixed precision and the base model's type."""
    fp16, bf16 = mixed_precision(spec.training, device)
    model = compute_dtype(quantization(spec, device), device)
    if not (fp16 or bf16):
        # Without autocast PEFT casts an adapter's input to float32.
        return Precision(model=model.itemsize, products=4, residual=model.itemsize)
    is_one = model is (torch.float16 if fp16 else torch.bfloat16)
    return Precision(model=model.itemsize, products=2, residual=2 if is_one else 4)
