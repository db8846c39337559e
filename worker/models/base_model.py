"""Loads base models, for training, serving and exports alike.

Only safetensors are loaded, and no remote code.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from app.core.specs.job import QuantizationSpec
from worker.models import cpu_dequantize
from worker.models.device import Device
from worker.models.files import checkpoint_weights, prequantized
from worker.models.files.description import MODEL_HINT, build_empty, read_config
from worker.models.files.reading import reading
from worker.models.nf4_roundtrip import check_kernel, round_weight

# Layers whose weights transformers reads without calling the layer (5.23), by model type.
NEVER_CALLED = dict.fromkeys(("mamba", "falcon_mamba", "jamba"), ("dt_proj",))
# Those, and layers whose weights transformers changes.
_NEVER_QUANTIZED = {**NEVER_CALLED, "gemma3n_text": ("prediction_coefs", "correction_coefs")}


def load_model(
    folder: Path, quantization: QuantizationSpec, device: Device, *, on_host: bool = False
) -> PreTrainedModel:
    """The base model as training uses it: 4-bit or not, frozen, on the device. Raises ModelUnreadable.

    `on_host`: in the host's memory, in the types that it has on the device. Weights whose type is that of
    their file are not read but mapped from there, so that several processes share them.
    """
    bits = quantization_config(quantization, device) if quantization.load_in_4bit else None
    config = read_config(folder)
    prequantized.check(config, folder.name)
    is_quantized = bits is not None or prequantized.find_format(config) is not None
    empty = build_empty(folder) if is_quantized else None
    if bits and empty is not None and config.get_text_config().model_type in _NEVER_QUANTIZED:
        bits.llm_int8_skip_modules = _list_unquantized(empty)
    dtype = compute_dtype(quantization, device)
    options, is_unfinished = prequantized.loading_options(config, bits)
    with reading(f"The base model {folder.name!r}", hint=MODEL_HINT):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            **{
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,  # else the error does not name them
                "device_map": None if on_host else {"": device.torch},
                "local_files_only": True,
                "trust_remote_code": False,
                "use_safetensors": True,
                "dtype": dtype,
                **options,
            },
        )
        model: PreTrainedModel = loaded[0]
        other_shapes = checkpoint_weights.find_other_shapes(model, empty) if empty is not None else []
        checkpoint_weights.check_loaded(loaded[1], folder, model, other_shapes)
        if prequantized.is_dequantized(config):
            prequantized.cast_bfloat16(model, dtype)
        if is_unfinished:
            model = prequantized.finish(model, bits, linears_to_quantize(model), device.torch, dtype)
    model.requires_grad_(False)
    _keep_weights_trainable(model)
    cpu_dequantize.check_model(model)
    return model


def load_for_serving(
    folder: Path, quantization: QuantizationSpec, device: Device, *, keeps_4bit: bool = False
) -> PreTrainedModel:
    """The base model as serving uses it: 4-bit weights are dequantized once, to 16 bits (32 on a CPU).

    These are the values that the adapter was trained against, without the cost of dequantizing them at each
    step. With `keeps_4bit` they stay in 4 bits, for a device without the memory for more.
    Raises ModelUnreadable.
    """
    if not quantization.load_in_4bit or keeps_4bit:
        return load_model(folder, quantization, device).eval()
    dtype = compute_dtype(quantization, device)
    if not device.is_cuda:
        unquantized = quantization.model_copy(
            update={"load_in_4bit": False, "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
        )
        model = load_model(folder, unquantized, device)
        if _round_to_4bit(model, quantization, device):
            return model.eval()
    return load_model(folder, quantization, device).dequantize(dtype=dtype).eval()


def _round_to_4bit(model: PreTrainedModel, quantization: QuantizationSpec, device: Device) -> bool:
    """Quantize and dequantize every weight that QLoRA quantizes. Returns False where that can't be done.

    On a CPU this is several times faster than to load in 4 bits and dequantize, by the same functions, so it
    gives the same values.
    """
    if hasattr(model.config, "quantization_config") or any(isinstance(m, Conv1D) for m in model.modules()):
        return False
    options = quantization_config(quantization, device)
    linears = linears_to_quantize(model).values()
    check_kernel(linears, options)
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
        list(threads.map(lambda one: round_weight(one.weight.data, options), linears))
    return True


def linears_to_quantize(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The layers of an unquantized model whose weights QLoRA holds in 4 bits, by name."""
    skipped = _list_unquantized(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, skipped)
    }


def _list_unquantized(model: PreTrainedModel) -> list[str]:
    """Names of layers that are never held in 4 bits: those of transformers' own choice, and of the family."""
    kept_in_fp32 = list(model._keep_in_fp32_modules or [])
    names: list[str] = HfQuantizer.get_modules_to_not_convert(model, keep_in_fp32_modules=kept_in_fp32)
    return [*names, *_NEVER_QUANTIZED.get(model.config.get_text_config().model_type, ())]


def quantization_config(quantization: QuantizationSpec, device: Device) -> BitsAndBytesConfig:
    """The spec in bitsandbytes' terms."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=compute_dtype(quantization, device),
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
    )


def compute_dtype(quantization: QuantizationSpec, device: Device) -> torch.dtype:
    """`auto`: bfloat16 where the device has it, else float16; float32 on a CPU."""
    if quantization.bnb_4bit_compute_dtype != "auto":
        dtype: torch.dtype = getattr(torch, quantization.bnb_4bit_compute_dtype)
        return dtype
    if not device.is_cuda:
        return torch.float32
    return torch.bfloat16 if device.supports_bf16 else torch.float16


def _keep_weights_trainable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    Repacked weights have no backward pass: training would continue after that evaluation with wrong gradients
    and without an error (bitsandbytes 0.50, Linear4bit.forward).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
