"""Decode steps in few kernels compute what worker/decoder computes by PyTorch."""

import copy

import pytest
import torch

from tests.worker.inference.model.test_support import MODELS
from tests.worker.inference.random_models import make_random_model
from worker.inference.adapters.cache import CachedAdapter, LoraPair
from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.model.attention import Step
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.paths import DecoderPath
from worker.kernels import lora_tiles
from worker.kernels.serving import paged_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 2


def make_adapters(path: DecoderPath, tmp_path) -> list[CachedAdapter]:
    """On all linear layers, and on some."""
    torch.manual_seed(1)
    shapes = {name: group.shape_of(name) for group in path.groups for name in group.names}
    pairs = {
        name: LoraPair(torch.randn(5, inputs) / 5, torch.randn(outputs, 5) / 5)
        for name, (outputs, inputs) in shapes.items()
        if not name.endswith("lm_head")
    }
    some = {name: pair for name, pair in pairs.items() if name.endswith(("o_proj", "k_proj", "up_proj"))}
    return [CachedAdapter("all", tmp_path, pairs), CachedAdapter("some", tmp_path, some or pairs)]


def decode(path: DecoderPath, slots: LoraSlots, slots_N: torch.Tensor, *, uses_kernels: bool) -> torch.Tensor:
    """Logits of some steps, each row one token further."""
    count = len(slots_N)
    cache, rows_N = KVCache(count + 1), torch.arange(count, device=DEVICE)
    block_tables_N1 = (rows_N + 1).int()[:, None]
    slots.select(set(slots_N.tolist()), slots_N)
    logits = []
    for position in range(STEPS):
        slots.begin(count)
        positions_N = torch.full((count,), position, device=DEVICE)
        step = Step(cache, block_tables_N1, rows_N, positions_N, key_count=position + 1)
        if uses_kernels:
            step.use_kernels()
        logits.append(path((rows_N * 7 + position) % 50, step, has_logits=True))
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("kind", "count", "has_adapters"),
    [
        *((kind, 2, True) for kind in ("Llama", "Qwen2", "Qwen3", "Gemma3", "Phi3")),
        *((kind, 1, False) for kind in ("Qwen2", "Gemma3", "Phi3")),
        ("Llama", lora_tiles.MAX_TOKENS + 1, True),
        ("Llama", 1, False),
        ("Llama", 2, False),
    ],
)
@torch.inference_mode()
def test_steps_in_few_kernels_give_the_same_logits(kind, count, has_adapters, tmp_path, monkeypatch):
    # Few splits of a row: the interpreter takes as long for each.
    monkeypatch.setattr(paged_attention, "_ENOUGH_PROGRAMS", 16)
    model = make_random_model(kind, **MODELS[kind]).to(DEVICE)
    slots_N = torch.arange(2, 2 + count, device=DEVICE) % (3 if has_adapters else 1)
    answers = []
    for uses_kernels in (False, True):
        own = copy.deepcopy(model)
        path = DecoderPath(own)
        slots = LoraSlots(own, path.groups, count=2, dtype=torch.float32, uses_kernels=uses_kernels)
        for slot, adapter in enumerate(make_adapters(path, tmp_path), start=1):
            slots.load(slot, adapter)
        if uses_kernels:
            path.use_kernels()
            for group in path.groups:
                group.weights.use_kernels()
        answers.append(decode(path, slots, slots_N, uses_kernels=uses_kernels))

    torch.testing.assert_close(answers[1], answers[0], atol=1e-4, rtol=1e-3)
