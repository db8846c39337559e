"""Adapters on experts' parameters on a GPU: one captured step, of rows with and without the adapter."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.worker.inference.conftest import peft_warnings_ignored
from tests.worker.inference.general.conftest import FAMILIES, make_model, save_adapter
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.general.adapters import put_on
from worker.inference.model.runner import ModelRunner
from worker.models.device import find_device

ROWS = 16


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    sizes = {"hidden_size": 128, "moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}
    monkeypatch.setitem(FAMILIES, "Qwen3Moe", sizes)
    return make_model("Qwen3Moe").to(device="cuda", dtype=torch.bfloat16)


@torch.no_grad()
def test_a_captured_step_of_mixed_rows_computes_what_peft_does(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    with peft_warnings_ignored():
        folder = save_adapter(
            model,
            tmp_path,
            target_parameters=["experts.gate_up_proj", "experts.down_proj"],
            target_modules=[],
        )
        with_peft = put_on(model, folder)
    x_NH = torch.randn(ROWS, 128, device="cuda", dtype=torch.bfloat16)
    experts_NK = torch.rand(ROWS, 8, device="cuda").topk(2).indices
    inputs = (x_NH, experts_NK, torch.full((ROWS, 2), 0.5, device="cuda", dtype=torch.bfloat16))
    base_NH, adapted_NH = (one.model.layers[0].mlp.experts(*inputs) for one in (model, with_peft))
    slots_N = torch.arange(ROWS, device="cuda") % 2
    expected_NH = torch.where(slots_N[:, None] == 1, adapted_NH, base_NH)
    runner = ModelRunner(model, find_device(), adapter_slot_count=4, max_rows=ROWS, cache_share=0.01)
    adapter = read_adapter("a", folder)
    assert isinstance(adapter, CachedAdapter)
    runner.load_adapter(1, adapter.ready_for(torch.bfloat16, pinned=True))
    runner._slots.select({0, 1}, slots_N)
    experts = model.model.layers[0].mlp.experts
    experts(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found_NH = experts(*inputs)

    graph.replay()

    error = (found_NH - expected_NH).float().norm() / expected_NH.float().norm()
    assert error < 0.02
    assert (adapted_NH - base_NH).float().norm() > 0.1 * base_NH.float().norm()
