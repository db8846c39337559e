"""The first steps of a job in bfloat16 lose as little to rounding as PEFT's and transformers' layers do.

After the first steps of the optimizer what an adapter adds is smaller than the rounding of the residual
stream, so a sum in the wrong order loses all of it. Seen in the loss, against a run in float32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from worker.planning.optimizations import _LIKE_LLAMA
from worker.training.batches import Collator, Example, PaddingFreeCollator
from worker.training.loss import score
from worker.training.optimizations import residuals, varlen_attention
from worker.training.optimizations.lora.linears import FusedLora

FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3_text": Gemma3TextConfig,
    "phi3": Phi3Config,
}
STEPS = 5
# Factors on the initial weights, so that the residual stream is as much larger than what the layers add to it
# as in a trained model.
EMBEDDING, WEIGHT, BIAS = 100.0, 4.0, 4.0


def make_config(family: str) -> PreTrainedConfig:
    shape = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    gemma = {"query_pre_attn_scalar": 16} if family == "gemma3_text" else {}
    return FAMILIES[family](**shape, **gemma)


def make_model(family: str, dtype: torch.dtype, *, is_4bit: bool, dropout: float) -> PeftModel:
    """Weights that bfloat16 holds exactly, with a new adapter in float32."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32)
    # Gemma multiplies its embeddings itself.
    embedding = EMBEDDING if family != "gemma3_text" else EMBEDDING / 8
    with torch.no_grad():
        for name, weight in base.named_parameters():
            weight.mul_(embedding if "embed" in name else WEIGHT if weight.ndim == 2 else 1.0)
            if name.endswith("bias"):
                weight.normal_(std=BIAS)
            weight.copy_(weight.bfloat16())
    base.to(dtype)
    if is_4bit:
        quantize(base, dtype)
    config = LoraConfig(r=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base.requires_grad_(False), config)
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    return model.train()


def quantize(base: nn.Module, dtype: torch.dtype) -> None:
    for name, linear in list(base.named_modules()):
        if type(linear) is nn.Linear and name != "lm_head":
            shape, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
            packed = bnb.nn.Linear4bit(*shape, bias=has_bias, compute_dtype=dtype, quant_type="nf4")
            packed.load_state_dict(linear.state_dict())
            packed.support_avx512bf16_for_cpu = False
            base.set_submodule(name, packed.to("cpu"))


def train(model: PeftModel, dtype: torch.dtype, *, is_packed: bool) -> torch.Tensor:
    """The mean loss of each row at each step, [steps, rows]."""
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 128, (length,), generator=random).tolist() for length in (24, 20, 16)]
    examples = [Example(input_ids=ids, labels=[-100, *ids[1:]]) for ids in rows]
    batch = PaddingFreeCollator()(examples) if is_packed else Collator(0)(examples)
    if is_packed:
        model.get_base_model().set_attn_implementation(varlen_attention.NAME)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            scores = score(model.get_base_model(), batch)
        loss = -scores.log_prob_sum / len(scores.log_probs_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        of_rows = scores.log_probs_N.split([len(ids) - 1 for ids in rows])
        losses.append([-float(of_row.mean()) for of_row in of_rows])
    return torch.tensor(losses, dtype=torch.float64)


@contextmanager
def optimized(model: PeftModel, family: str, dtype: torch.dtype) -> Iterator[None]:
    linears = FusedLora(model, dtype)
    with residuals.applied(model, linears) if family in _LIKE_LLAMA else ExitStack():
        yield
    linears.remove()


class TorchNorms:
    """worker/kernels/norm.py in PyTorch: Triton's interpreter takes bfloat16 for integers."""

    @staticmethod
    def rms_norm_and_scale(
        x_TH: torch.Tensor, weight_H: torch.Tensor, epsilon: float, *, padding: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale_T = torch.rsqrt(x_TH.float().square().mean(1) + epsilon)
        return (x_TH.float() * scale_T[:, None]).to(x_TH.dtype) * weight_H, scale_T

    @staticmethod
    def gradient(
        grad_TH: torch.Tensor,
        passed_TH: torch.Tensor,
        x_TH: torch.Tensor,
        weight_H: torch.Tensor,
        scale_T: torch.Tensor,
        *,
        padding: int,
    ) -> torch.Tensor:
        normed_TH, grad_TH = x_TH.float() * scale_T[:, None], grad_TH.float() * weight_H.float()
        through_TH = grad_TH - normed_TH * (normed_TH * grad_TH).mean(1, keepdim=True)
        return (scale_T[:, None] * through_TH + passed_TH.float()).to(x_TH.dtype)


@pytest.mark.parametrize("is_4bit", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_as_near_to_float32_as_without_optimizations(
    family: str, is_4bit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residuals, "norm", TorchNorms)
    varlen_attention.register(varlen_attention.row_by_row)
    away: dict[str, list[torch.Tensor]] = {"plain": [], "optimized": []}
    for is_packed, dropout in product((False, True), (0.0, 0.1)):
        make = partial(make_model, family, is_4bit=is_4bit, dropout=dropout)
        exact = train(make(torch.float32), torch.float32, is_packed=is_packed)
        assert exact[-1].mean() < exact[0].mean() - 0.01
        plain, fast = make(torch.bfloat16), make(torch.bfloat16)
        away["plain"].append(train(plain, torch.bfloat16, is_packed=is_packed) - exact)
        with optimized(fast, family, torch.bfloat16):
            away["optimized"].append(train(fast, torch.bfloat16, is_packed=is_packed) - exact)

    # Over kinds of batches, rows and steps: a single loss may be near to float32's by chance.
    expected, found = (float(torch.stack(runs).square().mean().sqrt()) for runs in away.values())
    assert found <= 1.5 * expected
