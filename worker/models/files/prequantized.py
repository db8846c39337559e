"""Base models whose files hold quantized weights: which of them can be used, and how they are loaded.

fp8 and mxfp4 (gpt-oss, DeepSeek) are dequantized while they are read, by transformers, and then quantized to
4 bits like any other model where a job asks for that. Weights that bitsandbytes holds in 4 bits are used as
they are. Other formats have kernels for inference alone, or need a package of their own: they are refused by
name.
"""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import Mxfp4Config

from app.core.errors.base_models import ModelUnreadable

_BITSANDBYTES = "bitsandbytes"
_DEQUANTIZED: dict[str, type[FineGrainedFP8Config | Mxfp4Config]] = {
    "fp8": FineGrainedFP8Config,
    "mxfp4": Mxfp4Config,
}


def find_format(config: PreTrainedConfig) -> str | None:
    """The format of the weights in the model's files, such as `fp8` or `gptq`; None: not quantized."""
    stored = _read(config)
    return str(stored.get("quant_method") or _BITSANDBYTES) if stored else None


def check(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelUnreadable for a model whose files hold weights in a format that can't be trained on."""
    found, stored = find_format(config), _read(config)
    if found is None or found in _DEQUANTIZED or (found == _BITSANDBYTES and stored.get("load_in_4bit")):
        return
    shown = f"{found} in 8 bits" if found == _BITSANDBYTES else found
    raise ModelUnreadable(
        f"The weights of the base model {name!r} are quantized already ({shown}), and can't be dequantized "
        "here.",
        hint="Name the model that it was quantized from: its model card says which. It is held in 4 bits "
        "while it trains and, where memory is short, while it serves.",
    )


def describe(config: PreTrainedConfig, *, load_in_4bit: bool) -> str | None:
    """What happens to the quantized weights of a model that `check` passes, in a sentence; None: no such."""
    found = find_format(config)
    if found is None:
        return None
    if found == _BITSANDBYTES:
        stored = _read(config)
        kind = f"4 bits ({stored.get('bnb_4bit_quant_type', 'fp4')})"
        then = "are used as they are" if load_in_4bit else "are dequantized"
        return f"The base model's weights are in {kind} already and {then}."
    then = " and then quantized to 4 bits" if load_in_4bit else ""
    return f"The base model's weights are in {found}; they are dequantized when they are loaded{then}."


def loading_options(config: PreTrainedConfig, bits: BitsAndBytesConfig | None) -> tuple[dict[str, Any], bool]:
    """(options for `from_pretrained`, whether the loaded weights are yet to be changed by `finish`).

    `bits`: the 4-bit quantization that is wanted, if one is.
    """
    found = find_format(config)
    if found is None:
        return ({"quantization_config": bits} if bits else {}), False
    if found == _BITSANDBYTES:
        stored = _read(config)
        dtype = bits.bnb_4bit_compute_dtype if bits else torch.float32
        # transformers takes the settings in the model's files, also for the type of the products, which is
        # not a property of the weights.
        config.quantization_config = {**stored, "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
        return {"config": config}, bits is None
    # On the CPU, since the device may not have the memory for weights of 16 bits.
    on_cpu = {"device_map": {"": "cpu"}} if bits else {}
    return {"quantization_config": _DEQUANTIZED[found](dequantize=True), **on_cpu}, bits is not None


def is_dequantized(config: PreTrainedConfig) -> bool:
    """Whether transformers dequantizes the model's weights while it reads them."""
    return find_format(config) in _DEQUANTIZED


def cast_bfloat16(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the bfloat16 weights of a dequantized model to `dtype`, in which it was loaded.

    transformers 5.17 dequantizes mxfp4 to bfloat16 (exactly), and would compute the experts of a float32 or
    float16 model in it; 5.23 dequantizes to `dtype`. Weights that every model has in float32 stay so.
    """
    for weight in model.parameters():
        if weight.dtype == torch.bfloat16:
            weight.data = weight.data.to(dtype)


def finish(
    model: PreTrainedModel,
    bits: BitsAndBytesConfig | None,
    linears: dict[str, nn.Linear | Conv1D],
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The model with these layers in 4 bits on the device; without `bits`, dequantized to `dtype`."""
    if bits is None:
        dequantized: PreTrainedModel = model.dequantize(dtype=dtype)
        return dequantized
    for name, linear in linears.items():
        if isinstance(linear, nn.Linear):
            model.set_submodule(name, _in_4bit(linear, bits).to(device))
    moved: Any = model.to(device)  # type: ignore[arg-type]  # as transformers annotates it
    # What transformers sets on a model that it has quantized: TRL, PEFT and `dequantize` look for it.
    moved.config.quantization_config = bits
    moved.hf_quantizer = AutoHfQuantizer.from_config(bits, pre_quantized=False)
    moved.is_loaded_in_4bit = moved.is_quantized = True
    moved.quantization_method = bits.quant_method
    return model


def _read(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings of the stored quantization; empty where there is none."""
    for one in (config, config.get_text_config()):
        stored = getattr(one, "quantization_config", None)
        if stored:
            return dict(stored if isinstance(stored, dict) else stored.to_dict())
    return {}


def _in_4bit(linear: nn.Linear, bits: BitsAndBytesConfig) -> Linear4bit:
    quantized = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=bits.bnb_4bit_compute_dtype,
        compress_statistics=bits.bnb_4bit_use_double_quant,
        quant_type=bits.bnb_4bit_quant_type,
        device="meta",
    )
    quantized.weight = Params4bit(
        linear.weight.data,
        requires_grad=False,
        compress_statistics=bits.bnb_4bit_use_double_quant,
        quant_type=bits.bnb_4bit_quant_type,
        module=quantized,
    )
    quantized.bias = linear.bias
    return quantized
