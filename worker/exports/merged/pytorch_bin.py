"""Writes a merged model as `pytorch_model*.bin`. These pickles are loaded back with `weights_only=True`."""

from collections.abc import Callable
from pathlib import Path

import torch

from worker.exports.merged.checkpoint import (
    SafetensorsCheckpoint,
    shard_names,
    split_into_shards,
    write_index,
)

INDEX_FILE = "pytorch_model.bin.index.json"


def write_bin(
    checkpoint: SafetensorsCheckpoint,
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int,
    announce: Callable[[int], None] = lambda elements: None,
) -> None:
    """Write the checkpoint's tensors. They are memory-mapped, so that none needs to stay in memory."""
    shards = split_into_shards(checkpoint.tensors, lambda _name: dtype, max_shard_bytes)
    names = shard_names(len(shards), "pytorch_model", ".bin")
    written = 0
    for name, shard in zip(names, shards, strict=True):
        torch.save(checkpoint.read_together([tensor.name for tensor in shard]), folder / name)
        written += sum(tensor.elements for tensor in shard)
        announce(written)
    if len(shards) > 1:
        write_index(folder / INDEX_FILE, dict(zip(names, shards, strict=True)), written * dtype.itemsize)
