"""Cached dequantized weights: the same numbers, decided once, released when memory runs out."""

from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.worker.training.optimizations.conftest import draw_rows, losses_and_gradients
from worker.models.frozen_weights import FourBitWeight
from worker.training import memory
from worker.training.batches import Collator, make_dataset
from worker.training.optimizations import dequantized_cache
from worker.training.optimizations.dequantized_cache import DequantizedCache
from worker.training.optimizations.lora_layers import FusedLora


class CountingMemory:
    """Spare memory that counts its refreshes."""

    refreshed = 0

    def release(self) -> bool:
        return False

    def refresh(self) -> None:
        self.refreshed += 1


@pytest.fixture
def linears(model: PeftModel) -> Iterator[FusedLora]:
    linears = FusedLora(model, torch.float32)
    yield linears
    linears.remove()


def is_cached(weight: FourBitWeight) -> bool:
    first, second = (weight.read(torch.float32) for _ in range(2))
    return first.data_ptr() == second.data_ptr()


def end_step(cache: DequantizedCache) -> None:
    cache.on_step_end(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())


def test_cached_weights_compute_the_same(model: PeftModel, linears: FusedLora) -> None:
    batch = Collator(0)(list(make_dataset(draw_rows([5, 2, 9]))))
    expected = losses_and_gradients(model, batch)
    packed = [weight for one in linears._linears.values() for _layer, weight in one._four_bit()]
    assert len(packed) == 14

    linears.cache_dequantized()

    assert linears.dequantized_bytes == sum(weight.read(torch.float32).nbytes for weight in packed)
    assert all(is_cached(weight) for weight in packed)
    for left, right in zip(losses_and_gradients(model, batch), expected, strict=True):
        assert torch.equal(left, right)
    assert linears.drop_dequantized()
    assert not linears.drop_dequantized()
    assert not any(is_cached(weight) for weight in packed)


@pytest.mark.parametrize("fits", [True, False])
def test_free_memory_is_read_once_after_the_first_steps(
    linears: FusedLora, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    free_bytes = linears.dequantized_bytes + dequantized_cache._SPARE_BYTES - (not fits)
    monkeypatch.setattr(memory, "free_bytes_at_peak", lambda growth: asked.append(growth) or free_bytes)
    graphs = CountingMemory()
    said: list[str] = []
    cache = DequantizedCache(linears, [graphs], said.append)

    for _ in range(2):
        end_step(cache)
    assert asked == []
    for _ in range(5):
        end_step(cache)

    assert asked == [dequantized_cache._GROWTH]
    assert graphs.refreshed == len(said) == fits
    assert cache.release() == fits


def test_once_memory_ran_out_nothing_is_cached(linears: FusedLora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes_at_peak", lambda growth: 1 << 60)
    cache = DequantizedCache(linears, [], print)
    assert not cache.release()

    for _ in range(5):
        end_step(cache)

    assert not linears.drop_dequantized()
