"""A merged model with the weights of its linear layers in FP8, in the format of compressed-tensors.

Weights are float8_e4m3fn with a scale for each output; activations are rounded at run time, with a scale for
each token, by what loads the files: vLLM, SGLang, transformers. The output layer, embeddings and vectors
stay in 16 bits. Format: https://github.com/vllm-project/compressed-tensors (float-quantized). O: outputs, I:
inputs of a linear layer.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from worker.exports.merged.checkpoint import SafetensorsCheckpoint, TensorSpec, write_checkpoint
from worker.exports.merged.merge import BaseShape

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_SCALE = "_scale"


def count_bytes(tensors: list[TensorSpec], linears: set[str], dtype: torch.dtype) -> int:
    """The bytes of the tensors in the folder."""
    return sum(
        tensor.elements + tensor.shape[0] * dtype.itemsize
        if tensor.name in linears
        else tensor.elements * dtype.itemsize
        for tensor in tensors
    )


def write_fp8(
    checkpoint: SafetensorsCheckpoint,
    folder: Path,
    *,
    linears: set[str],
    dtype: torch.dtype,
    max_shard_bytes: int,
    announce: Callable[[int], None] = lambda elements: None,
) -> None:
    """Write the checkpoint's tensors; those in `linears` in FP8, with scales of the type `dtype`."""
    tensors = []
    for tensor in checkpoint.tensors:
        tensors.append(tensor)
        if tensor.name in linears:
            tensors.append(TensorSpec(tensor.name + _SCALE, (tensor.shape[0], 1)))

    def read_rows(name: str) -> Iterator[torch.Tensor]:
        source = name.removesuffix(_SCALE)
        weight_OI = checkpoint.read(source)
        if source not in linears:
            yield weight_OI
        elif name.endswith(_SCALE):
            yield find_scales(weight_OI, dtype)
        else:
            yield round_weight(weight_OI, find_scales(weight_OI, dtype))

    write_checkpoint(
        folder,
        tensors,
        read_rows,
        dtype_of=lambda name: torch.float8_e4m3fn if name in linears else dtype,
        max_shard_bytes=max_shard_bytes,
        announce=announce,
    )


def find_scales(weight_OI: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale of each output, shaped (O, 1): its largest weight becomes the largest FP8 number."""
    largest_O1 = weight_OI.abs().amax(1, keepdim=True).float()
    scales_O1 = (largest_O1 / _LARGEST).to(dtype)
    return torch.where(scales_O1 > 0, scales_O1, torch.ones_like(scales_O1))


def round_weight(weight_OI: torch.Tensor, scales_O1: torch.Tensor) -> torch.Tensor:
    """The weight in FP8: divided by its scales and rounded to the nearest."""
    scaled_OI = (weight_OI.float() / scales_O1.float()).clamp(-_LARGEST, _LARGEST)
    return scaled_OI.to(torch.float8_e4m3fn)


def write_config(folder: Path, shape: BaseShape) -> None:
    """Add the description of the quantization to the folder's config.json."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    output = shape.output_weight
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": [output.removesuffix(".weight")] if output else [],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**number, "strategy": "channel", "dynamic": False},
                "input_activations": {**number, "strategy": "token", "dynamic": True},
            }
        },
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
