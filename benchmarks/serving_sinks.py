"""gpt-oss with an adapter on its attention: tokens a second of the paged and of the general path, in process.

    python -m benchmarks.serving_sinks [--layers 8]

The model has random weights in the widths of gpt-oss-20b; 16 requests at once. Needs a GPU. Prints JSON.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM

from app.core.engine.messages import ServingPath
from benchmarks.serving_experts import run
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.general.adapters import PeftFolder
from worker.inference.general.runner import GeneralRunner
from worker.inference.model.runner import ModelRunner
from worker.models.device import find_device

_ROWS = 16
_RANK = 16


def main() -> None:
    """Measure both paths on one model, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    config = GptOssConfig(num_hidden_layers=parser.parse_args().layers, vocab_size=32000)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        save_adapter(config, Path(folder))
        print(json.dumps(measure(config, Path(folder)), indent=1))


def measure(config: GptOssConfig, folder: Path) -> dict[str, Any]:
    """Tokens a second: on the general path (16 a request), then on the paged one (64)."""
    device = find_device()
    torch.manual_seed(0)
    with torch.device(device.torch):
        model = GptOssForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    found: dict[str, Any] = {"device": device.name, "torch": torch.__version__}
    general = GeneralRunner(model, device, max_rows=_ROWS, cache_share=0.1)
    found["general, one adapter"] = run(general, ServingPath.GENERAL, [PeftFolder("a", folder, "")], 16)
    general.close()
    runner = ModelRunner(model, device, adapter_slot_count=8, max_rows=_ROWS)
    runner.warm_up()
    adapter = read_adapter("a", folder)
    assert isinstance(adapter, CachedAdapter)
    adapter = adapter.ready_for(model.dtype, pinned=True)
    found["paged, no adapter"] = run(runner, ServingPath.PAGED, [None], 64)
    found["paged, one adapter"] = run(runner, ServingPath.PAGED, [adapter], 64)
    copies: list[CachedAdapter | PeftFolder | None] = [replace(adapter, id=str(one)) for one in range(4)]
    found["paged, four adapters"] = run(runner, ServingPath.PAGED, copies, 64)
    found["speedup"] = round(found["paged, one adapter"] / found["general, one adapter"], 1)
    return found


def save_adapter(config: GptOssConfig, folder: Path) -> None:
    """An adapter on the attention of every layer, in PEFT's layout, with random weights."""
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    widths = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
    }
    weights = {}
    for layer in range(config.num_hidden_layers):
        for name, (inputs, outputs) in widths.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for side, shape in (("A", (_RANK, inputs)), ("B", (outputs, _RANK))):
                weights[f"{prefix}.lora_{side}.weight"] = 0.02 * torch.randn(shape, dtype=torch.bfloat16)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 32,
        "target_modules": sorted(widths),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main()
