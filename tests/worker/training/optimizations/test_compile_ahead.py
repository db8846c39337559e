"""Attention is compiled in threads for each kind of heads that a model has, where a plan needs it."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedModel

from tests.tiny_model import NAME
from worker.kernels import varlen_attention
from worker.models.device import find_device
from worker.models.files.description import build_empty
from worker.planning.optimizations import OptimizationPlan
from worker.training.optimizations.compile_ahead import CompileAhead

PLAN = OptimizationPlan(fused_lora_dtype=torch.float32, explicit_decoder=True, varlen_kernels=("Triton",))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is compiled: heads, key heads, width, window and type; each in a thread of its own."""
    found: list[tuple[Any, ...]] = []

    def compilations(*heads: int, window: int | None, dtype: torch.dtype, device: torch.device) -> list[Any]:
        def compile_one() -> None:
            assert threading.current_thread() is not threading.main_thread()
            found.append((*heads, window, dtype))

        return [compile_one]

    monkeypatch.setattr(varlen_attention, "compilations", compilations)
    return found


@pytest.fixture
def llama(models_folder: Path) -> PreTrainedModel:
    return build_empty(models_folder / NAME)


def test_the_heads_of_all_layers_are_compiled_once(compiled: list[Any], llama: PreTrainedModel) -> None:
    CompileAhead(PLAN, llama, find_device()).wait()

    config = llama.config
    width = config.hidden_size // config.num_attention_heads
    assert compiled == [(config.num_attention_heads, config.num_key_value_heads, width, None, torch.float32)]


def test_layers_with_a_window_are_another_kind(compiled: list[Any]) -> None:
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    CompileAhead(PLAN, model, find_device()).wait()

    assert {one[3] for one in compiled} == {None, 8}
    assert len(compiled) == 2


@pytest.mark.parametrize(
    "changes",
    [{"explicit_decoder": False}, {"varlen_kernels": ("PyTorch varlen_attn",)}],
    ids=["general", "PyTorch"],
)
def test_what_a_plan_does_not_need_is_not_compiled(
    compiled: list[Any], llama: PreTrainedModel, changes: dict[str, Any]
) -> None:
    CompileAhead(replace(PLAN, **changes), llama, find_device()).wait()

    assert compiled == []


def test_a_kernel_that_cannot_be_compiled_is_left_to_the_trial(
    monkeypatch: pytest.MonkeyPatch, llama: PreTrainedModel
) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(varlen_attention, "compilations", lambda *_heads, **_options: [fail])

    CompileAhead(PLAN, llama, find_device()).wait()


def test_the_calls_compute_attention_and_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    for name in ("forward_kernel", "grad_queries_kernel", "grad_keys_kernel"):
        kernel = getattr(varlen_attention, name)

        class Noted:
            def __init__(self, name: str, kernel: Any) -> None:
                self._name, self._kernel = name, kernel

            def __getitem__(self, grid: Any) -> Any:
                launched.append(self._name)
                return self._kernel[grid]

        monkeypatch.setattr(varlen_attention, name, Noted(name, kernel))

    for call in varlen_attention.compilations(
        2, 1, 16, window=None, dtype=torch.float32, device=find_device().torch
    ):
        call()

    assert launched == ["forward_kernel", "grad_queries_kernel", "grad_keys_kernel"]
