"""Which optimizations apply to a job, decided from its spec, the device and the model's family alone.

The trainer applies them and the memory estimate counts on them. Whether they compute the same on this model
and device is checked when the job starts (worker/training/optimizations/trial.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from worker.decoder import reading
from worker.models.base_model import compute_dtype
from worker.models.device import Device
from worker.models.layer_sizes import largest
from worker.planning import automatic_settings

VarlenKernel = Literal["Triton", "PyTorch varlen_attn", "row by row"]
_GPU_KERNELS: tuple[VarlenKernel, ...] = ("Triton", "PyTorch varlen_attn")
_MAX_HEAD_WIDTH = 256
# Most tokens of a batch that always runs as a CUDA graph: with more, the GPU of a fast host is busy while
# kernels are launched.
MAX_GRAPH_TOKENS = 4096
# What configurations call the dropout of attention weights.
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
# And that of what a layer adds to the residual stream, or of the embeddings.
_OTHER_DROPOUTS = ("resid_pdrop", "embd_pdrop")


@dataclass(frozen=True)
class ModelFamily:
    """What a model's configuration says about the parts that optimizations replace."""

    name: str  # transformers' `model_type`
    takes_attention: bool  # its attention function can be replaced
    changes_attention: bool  # it has soft caps, or layers that are not attention
    drops_attention: bool  # in training, it drops out attention weights
    drops_others: bool  # in training, it drops out embeddings, or what a layer adds to the stream
    head_width: int


@dataclass(frozen=True)
class OptimizationPlan:
    """The optimizations that a job tries, and which are left out."""

    fused_lora_dtype: torch.dtype | None = None  # of its matrix products; None: PEFT's own layers
    draws_peft_masks: bool = True  # on a padded batch, dropout draws the masks that PEFT's layers draw
    triton_dequantize: bool = False
    triton_operations: bool = False  # in explicit decoder layers
    varlen_kernels: tuple[VarlenKernel, ...] = ()  # the fastest first; none: batches are padded
    explicit_decoder: bool = False  # all layers in one autograd function; else the others, one by one
    cuda_graphs: bool = False
    dequantized_cache: bool = False  # where enough memory is free
    optimizer_without_sync: bool = False
    left_out: tuple[str, ...] = ()  # each a name with the reason in parentheses


def plan_optimizations(
    spec: JobSpec,
    device: Device,
    family: ModelFamily,
    path: TrainingPath,
    *,
    is_alone: bool = False,
    divides_base: bool = False,
) -> OptimizationPlan:
    """Every optimization that may apply to a spec without `auto` for batch size and checkpointing.

    `is_alone`: no other process needs the device's memory while the job runs. `divides_base`: the devices of
    the job divide the base model.
    """
    assert not automatic_settings.has_automatic_batch(spec.training)
    if path is TrainingPath.PLAIN:
        return OptimizationPlan(left_out=("all (TUNESMITH_TRAINING_PATH is plain)",))
    if divides_base:
        # They read weights outside the layers' `forward`, around which FSDP2 collects them (decision 54).
        return OptimizationPlan(left_out=("all (devices divide the base model)",))
    optimizer = spec.training.optim
    lora_reason = _why_not_fused_lora(spec, device)
    padding_free_reason = _why_not_padding_free(spec, device, family)
    decoder_reason = lora_reason or padding_free_reason or _why_not_explicit(family)
    graphs_reason = _why_not_graphs(spec, padding_free_reason) if device.is_cuda else None
    reasons = [
        f"{name} ({reason})"
        for name, reason in (
            ("LoRA in one autograd function", lora_reason),
            ("padding-free batches", padding_free_reason),
            ("explicit decoder layers", decoder_reason),
            ("CUDA graphs for short batches", graphs_reason),
        )
        if reason
    ]
    return OptimizationPlan(
        fused_lora_dtype=None if lora_reason else products_dtype(spec, device),
        # Over unquantized weights PEFT drops from a float32 copy, for which a GPU draws other numbers.
        draws_peft_masks=spec.quantization.load_in_4bit or not device.is_cuda,
        triton_dequantize=device.is_cuda and spec.quantization.load_in_4bit,
        varlen_kernels=() if padding_free_reason else _GPU_KERNELS if device.is_cuda else ("row by row",),
        explicit_decoder=not decoder_reason,
        triton_operations=device.is_cuda and not decoder_reason,
        cuda_graphs=device.is_cuda and not graphs_reason,
        dequantized_cache=is_alone and device.is_cuda and not lora_reason and spec.quantization.load_in_4bit,
        optimizer_without_sync=device.is_cuda and ("paged" in optimizer or "bnb" in optimizer),
        left_out=tuple(reasons),
    )


def describe_family(model: PreTrainedModel) -> ModelFamily:
    """The family of a model, loaded or without weights."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    heads = largest(config, "num_attention_heads") or 1
    return ModelFamily(
        name=config.model_type,
        takes_attention=bool(getattr(model, "_supports_attention_backend", False)),
        changes_attention=bool(getattr(config, "attn_logit_softcapping", None))
        or not kinds <= {"full_attention", "sliding_attention"},
        drops_attention=any(getattr(config, name, None) for name in _ATTENTION_DROPOUTS),
        drops_others=any(getattr(config, name, None) for name in _OTHER_DROPOUTS),
        head_width=largest(config, "head_dim") or config.hidden_size // heads,
    )


def products_dtype(spec: JobSpec, device: Device) -> torch.dtype | None:
    """The type that the base model and the adapters both compute in; None where these differ."""
    fp16, bf16 = automatic_settings.mixed_precision(spec.training, device)
    adapters = torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32
    return (
        adapters if compute_dtype(automatic_settings.quantization(spec, device), device) is adapters else None
    )


def _why_not_fused_lora(spec: JobSpec, device: Device) -> str | None:
    if spec.lora.use_dora:
        return "DoRA"
    if spec.lora.bias != "none":
        return f"lora.bias {spec.lora.bias}"
    if products_dtype(spec, device) is None:
        return "base and adapters compute in different types"
    return None


def _why_not_explicit(family: ModelFamily) -> str | None:
    if family.name not in reading.FAMILIES:
        return f"{family.name} has other layers"
    return "the base model's configuration sets a dropout of its own" if family.drops_others else None


def _why_not_padding_free(spec: JobSpec, device: Device, family: ModelFamily) -> str | None:
    if spec.training.neftune_noise_alpha:
        return "NEFTune's noise depends on the length of a row"
    if spec.training.per_device_train_batch_size == 1 and not spec.training.packing and not device.is_cuda:
        return "one row in a batch"
    if not family.takes_attention:
        return f"{family.name} does not let its attention be replaced"
    if family.changes_attention:
        return f"{family.name} has attention of its own kind"
    if family.drops_attention:
        return (
            "varlen attention has no dropout of attention weights, which the base model's configuration sets"
        )
    if not device.is_cuda:
        return None
    if not device.supports_bf16:
        return "varlen attention needs a GPU from Ampere up"
    if (
        products_dtype(spec, device) not in (torch.float16, torch.bfloat16)
        or family.head_width > _MAX_HEAD_WIDTH
    ):
        return f"varlen attention computes in 16 bits, with heads up to {_MAX_HEAD_WIDTH}"
    return None


def _why_not_graphs(spec: JobSpec, padding_free_reason: str | None) -> str | None:
    training = spec.training
    if padding_free_reason:
        return "batches are padded"
    if training.gradient_checkpointing:
        return "gradient checkpointing is on"
    return None
