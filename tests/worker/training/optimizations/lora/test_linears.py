"""The LoRA function in a model against PEFT's own layers: outputs, gradients, and what autograd saves."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.worker.training.optimizations.conftest import TOLERANCE, relative_error
from worker.training.optimizations.lora.linears import FusedLora, find_groups


class Block(nn.Module):
    """Layers as a model has them: three with one input, and one behind them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(64, 64, bias=bias)
        self.k_proj = nn.Linear(64, 32, bias=bias)
        self.v_proj = nn.Linear(64, 32, bias=bias)
        self.o_proj = nn.Linear(64, 64, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.q_proj(x) * torch.cat([self.k_proj(x), self.v_proj(x)], dim=-1)) + x


class Stack(nn.Module):
    """Two blocks."""

    def __init__(self, bias: bool = False, checkpoints: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(bias), Block(bias)])
        self.checkpoints = checkpoints

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoints else block(x)
        return x


def adapted(stack: Stack, dtype: torch.dtype, *, double: bool | None, **lora: Any) -> nn.Module:
    """The stack with LoRA on it; `double`: 4-bit weights, with their scales quantized or not; None: dense."""
    stack = stack.to(dtype)
    if double is not None:
        for block in stack.blocks:
            for name, linear in list(block.named_children()):
                setattr(block, name, to_4bit(linear, dtype, double))
    stack.requires_grad_(False)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    model = get_peft_model(stack, LoraConfig(**{**options, **lora}))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model.train()


def to_4bit(linear: nn.Linear, dtype: torch.dtype, double: bool) -> nn.Module:
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=double,
        quant_type="nf4",
    )
    packed.load_state_dict(linear.state_dict())
    packed.support_avx512bf16_for_cpu = False
    return packed.to("cpu")


def run(model: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and all gradients."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = model(x)
    y.float().square().mean().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(w.grad for w in model.parameters() if w.grad is not None)]


@pytest.mark.parametrize("checkpoints", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("double", [None, False, True], ids=["dense", "nf4", "double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lora", [{}, {"lora_dropout": 0.2}, {"use_rslora": True, "r": 9}], ids=str)
def test_it_computes_what_peft_computes(
    lora: dict[str, Any], dtype: torch.dtype, double: bool | None, checkpoints: bool
) -> None:
    torch.manual_seed(0)
    model = adapted(Stack(bias=True, checkpoints=checkpoints), dtype, double=double, **lora)
    x = torch.randn(2, 5, 64).to(dtype)
    plain = run(model, x, dtype)
    fast = FusedLora(model, dtype)

    found = run(model, x, dtype)

    assert len(fast._forwards) == 8
    assert len(found) == len(plain) == 2 + 16
    for left, right in zip(found, plain, strict=True):
        assert relative_error(left, right) <= 3 * TOLERANCE[dtype]


def test_autograd_saves_the_input_once_and_the_low_rank_products() -> None:
    torch.manual_seed(0)
    model = adapted(Stack(), torch.float32, double=True)
    plain = saved_bytes(model)
    FusedLora(model, torch.float32)

    tokens, ranks, blocks = 10, 4, 2
    # For each block: the input of q, k and v; that of o; four low_rank products; both factors of the product.
    expected = blocks * tokens * (64 + 64 + 4 * ranks + 64 + 64)
    assert saved_bytes(model) == plain == 4 * expected


def test_dropout_saves_a_byte_for_each_input_where_peft_saves_six() -> None:
    torch.manual_seed(0)
    without = adapted(Stack(), torch.float32, double=True)
    dropped = adapted(Stack(), torch.float32, double=True, lora_dropout=0.1)
    inputs = 2 * 10 * 64 * 4  # two blocks, ten tokens, four layers with a mask of their own
    # Eight for what is left and what it was multiplied by, less the inputs themselves: two for four layers.
    assert saved_bytes(dropped) - saved_bytes(without) == 6 * inputs
    for model in (without, dropped):
        FusedLora(model, torch.float32)

    assert saved_bytes(dropped) - saved_bytes(without) == inputs


def saved_bytes(model: nn.Module) -> int:
    """Bytes that autograd saves in a forward pass, without the model's own weights, each tensor once."""
    own = {weight.data_ptr() for weight in model.parameters()}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(torch.randn(2, 5, 64, requires_grad=True))
    return sum(size for size, _tensor in saved.values())


def test_what_is_not_plain_lora_stays_pefts_own() -> None:
    assert find_groups(adapted(Stack(), torch.float32, double=None, use_dora=True)) == []
    assert find_groups(adapted(Stack(bias=True), torch.float32, double=None, lora_bias=True)) == []
    assert find_groups(adapted(Stack(bias=True), torch.float32, double=None, bias="all")) == []


def test_a_switched_off_adapter_and_a_removed_function_are_pefts_own() -> None:
    torch.manual_seed(0)
    model = adapted(Stack(), torch.float32, double=None)
    x = torch.randn(1, 3, 64)
    with_adapter = model(x)
    with model.disable_adapter():
        without = model(x)
    fast = FusedLora(model, torch.float32)

    with model.disable_adapter():
        assert torch.equal(model(x), without)
    fast.remove()

    assert torch.equal(model(x), with_adapter)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_called_with_inputs_of_their_own_are_not_mixed_up() -> None:
    torch.manual_seed(0)
    model = adapted(Stack(), torch.float32, double=None)
    block = model.base_model.model.blocks[0]
    x, other = torch.randn(3, 64), torch.randn(3, 64)
    expected = [block.q_proj(x), block.k_proj(other), block.v_proj(x), block.q_proj(x)]
    FusedLora(model, torch.float32)
    model(x)

    found = [block.q_proj(x), block.k_proj(other), block.v_proj(x), block.q_proj(x)]

    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_an_output_that_nobody_uses_has_no_gradient() -> None:
    torch.manual_seed(0)
    model = adapted(Stack(), torch.float32, double=None)
    FusedLora(model, torch.float32)
    model(torch.randn(3, 64))
    block = model.base_model.model.blocks[0]
    x = torch.randn(3, 64, requires_grad=True)
    block.q_proj(x)

    block.v_proj(x).sum().backward()

    assert block.q_proj.lora_B["default"].weight.grad is None
    assert block.q_proj.lora_A["default"].weight.grad is None
    assert block.v_proj.lora_A["default"].weight.grad.any()
    assert x.grad is not None
