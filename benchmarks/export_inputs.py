"""The inputs of the export benchmark: a random Llama, sharded as on the Hub, and a random adapter."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from worker.exports.merged.checkpoint import SafetensorsCheckpoint, TensorSpec, write_checkpoint
from worker.exports.merged.merge import read_shape

_HEAD = 128
_ROWS = 256
_SPREAD = 0.02


@dataclass(frozen=True)
class Shape:
    """The model's dimensions."""

    layers: int
    hidden: int
    mlp: int
    vocabulary: int


def make_base(folder: Path, shape: Shape, shard_bytes: int) -> None:
    """Write a model folder, in bfloat16."""
    folder.mkdir()
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // _HEAD,
        vocab_size=shape.vocabulary,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    weights = read_shape(folder).model.state_dict()
    write_checkpoint(
        folder,
        [TensorSpec(name, tuple(weight.shape)) for name, weight in weights.items()],
        lambda name: _random_rows(weights[name]),
        dtype_of=lambda _name: torch.bfloat16,
        max_shard_bytes=shard_bytes,
    )


def make_adapter(base: Path, folder: Path, rank: int) -> None:
    """Write a PEFT folder with LoRA matrices for every linear layer."""
    folder.mkdir()
    weights = {}
    for tensor in SafetensorsCheckpoint(base).tensors:
        if tensor.name.endswith("proj.weight"):
            stem = f"base_model.model.{tensor.name.removesuffix('.weight')}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(rank, tensor.shape[1]) * _SPREAD
            weights[f"{stem}.lora_B.weight"] = torch.randn(tensor.shape[0], rank) * _SPREAD
    save_file(weights, folder / "adapter_model.safetensors")
    LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear").save_pretrained(str(folder))


def _random_rows(like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Random values in blocks of rows, so that the largest tensor is never in memory."""
    for rows in like.split(_ROWS):
        yield torch.randn(rows.shape) * _SPREAD
