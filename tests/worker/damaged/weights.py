"""Weights and generation configurations that are missing, unreadable or of another model."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.worker.damaged.damages import (
    Damage,
    as_file,
    as_folder,
    as_loop,
    empty,
    in_turn,
    remove,
    truncate,
    write,
)

WEIGHTS = "model.safetensors"


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _reshape_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 5)


def _make_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")


def _make_integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64, dtype=torch.int8)


def _drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"other.{name}"] = tensors.pop(name)


def _index(content: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


def _missing_shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    names[next(iter(tensors))] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _pickles(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


WEIGHT_FILES: dict[str, Damage] = {
    "weights missing": remove(WEIGHTS),
    "weights empty": write(WEIGHTS, b""),
    "weights truncated": truncate(WEIGHTS, 0.7),
    "weights header truncated": truncate(WEIGHTS, 0.001),
    "weights rubbish": write(WEIGHTS, b"rubbish" * 100),
    "weights text": write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    "weights header a list": write(WEIGHTS, struct.pack("<Q", 2) + b"[]"),
    "weights header huge": write(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
    "weights header strange": write(WEIGHTS, struct.pack("<Q", 8) + b'{"a": 1}'),
    "weights without tensors": write(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
    "weights a folder": as_folder(WEIGHTS),
    "weights unreadable": as_loop(WEIGHTS),
    "weights without format": lambda folder: save_file(load_file(folder / WEIGHTS), folder / WEIGHTS),
    "wrong shapes": _tensors(_reshape_one),
    "not a number": _tensors(_make_nan),
    "integers": _tensors(_make_integers),
    "one tensor missing": _tensors(_drop_one),
    "names unknown": _tensors(_rename),
    "shard missing": _missing_shard,
    "index a list": _index([]),
    "index without map": _index({"metadata": {}}),
    "index empty map": _index({"metadata": {}, "weight_map": {}}),
    "index map a list": _index({"weight_map": ["a"]}),
    "index names numbers": _index({"weight_map": {"a": 5}}),
    "index names outside": _index({"metadata": {}, "weight_map": {"a": "../../secret.safetensors"}}),
    "index not JSON": in_turn(_index({}), write("model.safetensors.index.json", "{")),
    "pickles only": _pickles,
    "GGUF": in_turn(remove(WEIGHTS), write("model.gguf", b"GGUFrubbish")),
    "generation config rubbish": write("generation_config.json", "[1"),
    "generation config list": write("generation_config.json", "[]"),
    "generation config types": write(
        "generation_config.json", '{"eos_token_id": "x", "temperature": "hot", "max_length": []}'
    ),
    "generation config end list": write("generation_config.json", '{"eos_token_id": ["a", null]}'),
    "generation config end object": write("generation_config.json", '{"eos_token_id": {"a": 1}}'),
    "generation config a folder": as_folder("generation_config.json"),
    "empty folder": empty,
    "a file": as_file,
}
