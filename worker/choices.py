"""What a spec leaves to `auto`, decided from the device and the estimate; training and preflight ask here.

No model and no files: a table of cases tests it.
"""

import torch
from peft import LoraConfig

from app.core.errors import InvalidRequest
from app.core.specs import JobSpec, LoraSpec, QuantizationSpec, TrainingSpec
from worker.base_model import compute_dtype
from worker.device import Device
from worker.estimate import Plan, Precision

DEFAULT_MAX_SEQ_LENGTH = 2048
# The rest is for fragments, and for what other programs take meanwhile.
USABLE_SHARE = 0.9


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


def lora_config(lora: LoraSpec) -> LoraConfig:
    """The adapter's settings. Other programs expect a whole alpha, where it is one, to be written as such."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def max_seq_length(training: TrainingSpec, context_length: int | None) -> int:
    """How many tokens of a row are kept: never more than the base model can read."""
    longest = context_length or DEFAULT_MAX_SEQ_LENGTH
    return min(training.max_seq_length or DEFAULT_MAX_SEQ_LENGTH, longest)


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
