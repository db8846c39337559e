"""Merging: peak memory beside its bound (1.3 times the largest shard plus the adapter), and MB a second.

`python -m benchmarks.exports --folder DIR [--layers N] [--hidden N]` writes a synthetic Llama of random
weights in many shards and a random adapter, and merges both in another process. NF4 rounding is on.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig

from app.core.specs import QuantizationSpec
from worker import base_model
from worker.device import find_device
from worker.exports.adapter_weights import read_adapter
from worker.exports.checkpoint import Checkpoint, TensorSpec, write_checkpoint
from worker.exports.merge import Merger, merge, read_shape

_RANK = 16
_SHARDS = 12


def main() -> None:
    """Make the inputs, merge them in another process, print what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--merge", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    base, adapter = options.folder / "base", options.folder / "adapter"
    if options.merge:
        print(json.dumps(_measure(base, adapter, options.folder / "merged")))
        return
    _make_base(base, layers=options.layers, hidden=options.hidden)
    _make_adapter(base, adapter)
    command = [sys.executable, "-m", "benchmarks.exports", "--folder", str(options.folder), "--merge"]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _make_base(folder: Path, *, layers: int, hidden: int) -> None:
    folder.mkdir(parents=True)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=8000,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    model = read_shape(folder).model
    tensors = [TensorSpec(name, tuple(weight.shape)) for name, weight in model.state_dict().items()]
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    size = sum(tensor.elements for tensor in tensors) * 2
    write_checkpoint(
        folder,
        tensors,
        lambda name: torch.randn(shapes[name]) * 0.02,
        dtype=torch.bfloat16,
        max_shard_bytes=size // _SHARDS,
    )


def _make_adapter(base: Path, folder: Path) -> None:
    folder.mkdir()
    targets = [tensor for tensor in Checkpoint(base).tensors if tensor.name.endswith("proj.weight")]
    weights = {}
    for tensor in targets:
        stem = f"base_model.model.{tensor.name.removesuffix('.weight')}"
        weights[f"{stem}.lora_A.weight"] = torch.randn(_RANK, tensor.shape[1]) * 0.02
        weights[f"{stem}.lora_B.weight"] = torch.randn(tensor.shape[0], _RANK) * 0.02
    save_file(weights, folder / "adapter_model.safetensors")
    LoraConfig(r=_RANK, lora_alpha=32, target_modules="all-linear").save_pretrained(str(folder))


def _measure(base: Path, adapter: Path, merged: Path) -> dict[str, object]:
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    rounding = base_model.quantization_config(QuantizationSpec(), find_device())
    before = _peak_bytes()
    began = time.monotonic()
    merger = Merger(Checkpoint(base), read_shape(base), read_adapter(adapter), rounding)
    shards = [path.stat().st_size for path in base.glob("*.safetensors")]
    merge(merger, merged, dtype=torch.bfloat16, max_shard_bytes=max(shards))
    seconds = time.monotonic() - began
    adapter_bytes = (adapter / "adapter_model.safetensors").stat().st_size
    return {
        "model_mb": round(sum(shards) / 1e6),
        "shards": len(shards),
        "largest_shard_mb": round(max(shards) / 1e6),
        "adapter_mb": round(adapter_bytes / 1e6),
        "bound_mb": round((1.3 * max(shards) + adapter_bytes) / 1e6),
        "peak_above_imports_mb": round((_peak_bytes() - before) / 1e6),
        "process_before_mb": round(before / 1e6),
        "seconds": round(seconds, 1),
        "mb_per_second": round(sum(shards) / 1e6 / seconds, 1),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
