"""The memory of a merge in bytes of live tensors; memory-mapped files are not counted."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from app.core.specs.job import QuantizationSpec
from tests.worker.exports.conftest import save_adapter
from worker.exports.merged.adapter_weights import read_adapter
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.merge import Merger, merge, read_shape
from worker.exports.merged.pytorch_bin import write_bin
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description

LAYERS = 12
SHARD_BYTES = 8_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    """A bfloat16 model of 38 MB in shards, and an adapter."""
    folder = tmp_path_factory.mktemp("large")
    with torch.device("cpu"):
        config = LlamaConfig(
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            vocab_size=320,
            dtype="bfloat16",
        )
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size=SHARD_BYTES)
    description.load_tokenizer(models_folder / "tiny-llama").save_pretrained(folder / "base")
    save_adapter(folder / "base", folder / "adapter")
    return folder


def peak_bytes(work: Callable[[], object], inputs: Path) -> int:
    """The peak memory of tensors, without the inputs' files, which are memory-mapped."""
    # acc_events: without it, torch 2.11 warns that it clears the events of earlier cycles. Here is one cycle.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    mapped = {path.stat().st_size for path in inputs.rglob("*.safetensors")}
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    totals = itertools.accumulate(change for _, change in changes if abs(change) not in mapped)
    return max(totals, default=0)


def merge_large(large: Path, folder: Path, *, is_rounded: bool) -> None:
    quantization = base_model.quantization_config(QuantizationSpec(), find_device()) if is_rounded else None
    base = large / "base"
    merger = Merger(
        SafetensorsCheckpoint(base), read_shape(base), read_adapter(large / "adapter"), quantization
    )
    folder.mkdir()
    merge(merger, folder, dtype=torch.bfloat16, max_shard_bytes=SHARD_BYTES)


def bound(large: Path) -> float:
    """1.3 times the largest shard, and the adapter."""
    shards = [path.stat().st_size for path in (large / "base").glob("*.safetensors")]
    assert sum(shards) > 4 * max(shards)
    return 1.3 * max(shards) + (large / "adapter" / "adapter_model.safetensors").stat().st_size


def test_a_model_in_memory_exceeds_the_bound(large: Path) -> None:
    checkpoint = SafetensorsCheckpoint(large / "base")

    peak = peak_bytes(lambda: [checkpoint.read(one.name).clone() for one in checkpoint.tensors], large)

    assert peak == 2 * checkpoint.elements > 2 * bound(large)


@pytest.mark.parametrize("is_rounded", [False, True], ids=["original", "dequantized"])
def test_a_merge_needs_less_memory_than_a_shard_and_the_adapter(
    is_rounded: bool, large: Path, tmp_path: Path
) -> None:
    peak = peak_bytes(lambda: merge_large(large, tmp_path / "merged", is_rounded=is_rounded), large)

    assert 0 < peak < bound(large)


def test_pickles_are_written_from_memory_mapped_files(large: Path, tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(large / "base")

    peak = peak_bytes(
        lambda: write_bin(checkpoint, tmp_path, dtype=torch.bfloat16, max_shard_bytes=SHARD_BYTES), large
    )

    written = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert peak < SHARD_BYTES / 10
    assert written < 1.1 * 2 * checkpoint.elements
