"""Which fast ways a job may take: a pure function of spec, device and what is known of the model's family.

The trainer takes them, and the memory estimate reckons with them. That they compute the same is not believed
here but tried, when the job starts (training/fast/check.py).
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from worker.models.base_model import compute_dtype
from worker.models.device import Device
from worker.planning import automatic_settings

AttentionKernel = Literal["tiles of rows", "flash", "row by row"]
_GPU_KERNELS: tuple[AttentionKernel, ...] = ("tiles of rows", "flash")
_WIDEST_HEAD = 256
# Their decoder layers' `forward` is the same to the letter in transformers 5.17 to 5.23.
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")
# Of a batch that a CUDA graph is worth while for: beyond it the GPU is busy while kernels are launched.
MOST_TOKENS = 4096


@dataclass(frozen=True)
class Family:
    """What the model's configuration says."""

    name: str
    takes_attention: bool  # lets its attention be replaced
    changes_attention: bool  # by soft caps, sinks, dropout or layers that are no attention
    head_width: int
    shapes_logits: bool  # by a soft cap or a scale
    adds_losses: bool  # of how its experts are chosen


@dataclass(frozen=True)
class Choice:
    """The fast ways of a job, and why the others are not taken, a clause each."""

    linears: torch.dtype | None = None  # the type of the products
    draws_pefts_masks: bool = True  # where dropout has rows that lie as PEFT has them
    unpacks_in_one_kernel: bool = False
    attention: tuple[AttentionKernel, ...] = ()  # the best first; none: padded batches, the model's own
    known_targets: bool = False  # where batches are joined
    one_pass_loss: bool = False
    liger: bool = False
    residuals: bool = False
    graphs: bool = False
    kept_weights: bool = False  # where memory is left
    unwaiting_optimizer: bool = False
    left_out: tuple[str, ...] = ()


def choose(
    spec: JobSpec, device: Device, family: Family, path: TrainingPath, *, is_alone: bool = False
) -> Choice:
    """Everything that may apply to a spec without `auto` in its passes.

    `is_alone`: nobody else waits for the device's memory.
    """
    assert not automatic_settings.is_open(spec.training)
    if path is TrainingPath.PLAIN:
        return Choice(left_out=("TUNESMITH_TRAINING_PATH is plain",))
    optimizer = spec.training.optim
    linears_reason = _why_not_linears(spec, device)
    attention_reason = _why_not_joined(spec, device, family)
    loss_reason = _why_not_one_pass(spec, device, family)
    liger_reason = _why_not_liger(family) if device.is_cuda else None
    graphs_reason = _why_not_graphs(spec, attention_reason) if device.is_cuda else None
    reasons = [
        f"{name} ({reason})"
        for name, reason in (
            ("LoRA in one function", linears_reason),
            ("batches without padding", attention_reason),
            ("the loss in one pass", loss_reason),
            ("Liger's kernels", liger_reason),
            ("CUDA graphs", graphs_reason),
        )
        if reason
    ]
    return Choice(
        linears=None if linears_reason else products_dtype(spec, device),
        # Over unquantized weights PEFT drops out of a float32 copy, for which a GPU draws other numbers.
        draws_pefts_masks=spec.quantization.load_in_4bit or not device.is_cuda,
        unpacks_in_one_kernel=device.is_cuda and spec.quantization.load_in_4bit,
        attention=() if attention_reason else _GPU_KERNELS if device.is_cuda else ("row by row",),
        known_targets=not attention_reason and not family.shapes_logits and not family.adds_losses,
        one_pass_loss=not loss_reason,
        liger=device.is_cuda and not liger_reason,
        residuals=device.is_cuda and family.name in _LIKE_LLAMA,
        graphs=device.is_cuda and not graphs_reason,
        kept_weights=is_alone and device.is_cuda and not linears_reason and spec.quantization.load_in_4bit,
        unwaiting_optimizer=device.is_cuda and ("paged" in optimizer or "bnb" in optimizer),
        left_out=tuple(reasons),
    )


def describe_family(model: PreTrainedModel) -> Family:
    """Read off a model, loaded or without weights."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    odd = any(getattr(config, name, None) for name in ("attn_logit_softcapping", "attention_dropout"))
    scales = (
        "final_logit_softcapping",
        "logit_scale",
        "logits_scaling",
        "lm_head_multiplier",
        "output_multiplier",
    )
    heads = getattr(config, "num_attention_heads", None) or 1
    return Family(
        name=config.model_type,
        takes_attention=bool(getattr(model, "_supports_attention_backend", False)),
        changes_attention=odd or not kinds <= {"full_attention", "sliding_attention"},
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        shapes_logits=any(getattr(config, name, None) is not None for name in scales),
        adds_losses=bool(getattr(config, "output_router_logits", False)),
    )


def products_dtype(spec: JobSpec, device: Device) -> torch.dtype | None:
    """The type that base and adapters both compute in; None where they differ."""
    fp16, bf16 = automatic_settings.mixed_precision(spec.training, device)
    adapters = torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32
    return (
        adapters if compute_dtype(automatic_settings.quantization(spec, device), device) is adapters else None
    )


def _why_not_linears(spec: JobSpec, device: Device) -> str | None:
    if spec.lora.use_dora:
        return "DoRA"
    if spec.lora.bias != "none":
        return f"lora.bias {spec.lora.bias}"
    if products_dtype(spec, device) is None:
        return "base and adapters compute in different types"
    return None


def _why_not_liger(family: Family) -> str | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return None if family.name in MODEL_TYPE_TO_APPLY_LIGER_FN else f"Liger does not know {family.name}"


def _why_not_joined(spec: JobSpec, device: Device, family: Family) -> str | None:
    if spec.training.neftune_noise_alpha:
        return "NEFTune's noise depends on the length of a row"
    if spec.training.per_device_train_batch_size == 1 and not spec.training.packing and not device.is_cuda:
        return "one row in a batch"
    if not family.takes_attention:
        return f"{family.name} does not let its attention be replaced"
    if family.changes_attention:
        return f"{family.name} has attention of its own kind"
    if not device.is_cuda:
        return None
    if not device.supports_bf16:
        return "attention within rows needs a GPU from Ampere up"
    if (
        products_dtype(spec, device) not in (torch.float16, torch.bfloat16)
        or family.head_width > _WIDEST_HEAD
    ):
        return f"attention within rows is computed in 16 bits, with heads up to {_WIDEST_HEAD}"
    return None


def _why_not_graphs(spec: JobSpec, attention_reason: str | None) -> str | None:
    training = spec.training
    if attention_reason:
        return "batches are padded"
    if training.gradient_checkpointing:
        return "activations are computed again"
    rows, length = training.per_device_train_batch_size, training.max_seq_length
    if training.packing and (length is None or int(rows) * length > MOST_TOKENS):
        return "batches are long enough to keep the GPU busy"
    return None


def _why_not_one_pass(spec: JobSpec, device: Device, family: Family) -> str | None:
    if device.is_cuda:
        return "on a GPU TRL has a kernel for it"
    if spec.lora.modules_to_save:
        return "the output layer may be trained"
    if family.shapes_logits:
        return f"{family.name} scales its logits"
    return None
