"""Liger's kernels are applied to a model and undone; only a GPU runs them, but for those of experts."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from liger_kernel.ops import fused_moe
from liger_kernel.transformers import monkey_patch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from triton.runtime.autotuner import Autotuner

from app.core.specs.job import LoraSpec
from benchmarks.families.configs import find_families
from benchmarks.families.tiny_model import make_config, make_tokenizer
from worker.models import lora
from worker.training.optimizations import liger


def what_is_there(model: PeftModel) -> list[dict[str, object]]:
    base = model.get_base_model()
    return [dict(vars(modeling_llama)), *(dict(vars(module)) for module in base.modules())]


def test_a_model_is_restored(model: PeftModel) -> None:
    base = model.get_base_model()
    before = what_is_there(model)

    with liger.applied(model):
        norm = base.model.norm.forward.__func__
        assert norm.__module__.startswith("liger_kernel")
        assert modeling_llama.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
        model.train()  # what others change meanwhile stays

    after = what_is_there(model)
    assert [list(one) for one in after] == [list(one) for one in before]
    assert all(
        new[name] is old[name] or name == "training"
        for old, new in zip(before, after, strict=True)
        for name in old
    )
    assert base.training


@pytest.fixture
def mixture() -> PeftModel:
    """A mixture of experts with adapters on their weights."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(make_config(find_families(["qwen3_moe"])[0], make_tokenizer()))
    model = lora.attach(base, LoraSpec(r=4, target_modules="all-linear", dropout=0))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


@contextlib.contextmanager
def only_kernels_of_experts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter neither runs the kernel of the norm nor tunes the launch parameters."""
    apply = monkey_patch._apply_liger_kernel_to_instance
    with monkeypatch.context() as patch:
        patch.setattr(
            monkey_patch,
            "_apply_liger_kernel_to_instance",
            lambda **named: apply(rms_norm=False, rope=False, **named),
        )
        for tuner in vars(fused_moe).values():
            if isinstance(tuner, Autotuner):
                patch.setattr(tuner, "configs", tuner.configs[:1])
        yield


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    ids = torch.arange(12)[None]
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.slow  # seconds in the interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter")
def test_experts_with_adapters_compute_the_same(mixture: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(mixture)
    experts = mixture.get_base_model().model.layers[0].mlp.experts
    assert liger.has_adapted_experts(mixture)

    with only_kernels_of_experts(monkeypatch), liger.applied(mixture):
        assert experts.get_base_layer().forward.__func__.__module__.startswith("liger_kernel")
        found = gradients(mixture)

    assert "forward" not in vars(experts.get_base_layer())
    assert any("experts" in name for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_experts_can_be_left_out(mixture: PeftModel) -> None:
    experts = mixture.get_base_model().model.layers[0].mlp.experts

    with liger.applied(mixture, with_experts=False):
        assert "forward" not in vars(experts)
        assert "forward" not in vars(experts.get_base_layer())
