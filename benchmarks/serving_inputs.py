"""Inputs of benchmarks/serving.py: adapters with random weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

RANK = 16


def write_adapters(model_folder: Path, folder: Path, count: int) -> list[Path]:
    """Write adapters on all linear layers in PEFT's format, unless they exist. Returns their folders."""
    folders = [folder / f"adapter-{index}" for index in range(count)]
    shapes = _linear_shapes(model_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for index, one in enumerate(folders):
        if one.exists():
            continue
        one.mkdir(parents=True)
        draw = torch.Generator(device).manual_seed(index)
        weights = {}
        for name, (outputs, inputs) in shapes.items():
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                tensor = torch.randn(shape, generator=draw, device=device) * 0.02
                weights[f"base_model.model.{name}.lora_{side}.weight"] = tensor.to(torch.bfloat16).cpu()
        save_file(weights, one / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(model_folder),
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": sorted({name.rpartition(".")[2] for name in shapes}),
        }
        (one / "adapter_config.json").write_text(json.dumps(config))
    return folders


def _linear_shapes(model_folder: Path) -> dict[str, tuple[int, int]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
