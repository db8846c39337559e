"""The LoRA function against PEFT's own layers and against float32: outputs, gradients, and what is kept."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from worker.training.fast import room
from worker.training.fast.kernels import narrow_products
from worker.training.fast.linears import FastLinears, find_groups
from worker.training.fast.lora_layers import Adapters, Layer
from worker.training.fast.lora_linear import lora_linears

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@dataclass
class Kept:
    """A weight that is there."""

    weight_OI: torch.Tensor
    reads: int = 0

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        self.reads += 1
        return self.weight_OI.to(dtype)


class Roomy(torch.autograd.Function):
    """The input, with room behind each row."""

    @staticmethod
    def forward(ctx: Any, x_TI: torch.Tensor, free: int) -> torch.Tensor:
        tokens, inputs = x_TI.shape
        return x_TI.new_empty(tokens, inputs + free)[:, :inputs].copy_(x_TI)

    @staticmethod
    def backward(ctx: Any, grad_TI: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_TI, None


class RoomyGradient(torch.autograd.Function):
    """The output, whose gradient has room behind each row."""

    @staticmethod
    def forward(ctx: Any, y_TO: torch.Tensor, free: int) -> torch.Tensor:
        ctx.free = free
        return y_TO.clone()

    @staticmethod
    def backward(ctx: Any, grad_TO: torch.Tensor) -> tuple[torch.Tensor, None]:
        tokens, outputs = grad_TO.shape
        roomy_TO = grad_TO.new_empty(tokens, outputs + ctx.free)[:, :outputs].copy_(grad_TO)
        return room.lend(roomy_TO, ctx.free), None


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("has_room", [False, True], ids=["added", "beside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "ranks"),
    [
        (7, 24, [16], [4]),
        (1, 8, [8, 12], [1, 3]),
        (33, 64, [64, 16, 16], [8, 8, 8]),
        (5, 16, [48, 48], [64, 64]),
    ],
)
def test_it_computes_what_float32_says(
    tokens: int,
    inputs: int,
    outputs: list[int],
    ranks: list[int],
    dropout: float,
    dtype: torch.dtype,
    has_room: bool,
) -> None:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) / shape[-1] ** 0.5

    x_TI = draw(tokens, inputs).to(dtype)
    weights = [draw(width, inputs).to(dtype) for width in outputs]
    biases = [draw(width).to(dtype) if place % 2 else None for place, width in enumerate(outputs)]
    matrices = [m for r, o in zip(ranks, outputs, strict=True) for m in (draw(r, inputs), draw(o, r))]
    weighing = [draw(tokens, width).to(dtype) for width in outputs]
    layers = [
        Layer(Kept(w), b, 0.25 + i, dropout) for i, (w, b) in enumerate(zip(weights, biases, strict=True))
    ]

    def fast(x: torch.Tensor, params: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        copies = [m.detach().to(dtype) for m in params]
        adapters = Adapters(torch.cat(copies[0::2]), tuple(copies[1::2]))
        if not has_room:
            return lora_linears(x, layers, adapters, params)
        columns = torch.block_diag(*copies[1::2]).split(outputs)
        beside = [
            dataclasses.replace(
                layer,
                read_beside=torch.cat([weight, b], dim=1).to,
                read_above=torch.cat([weight, adapters.a_SI]).to,
            )
            for layer, weight, b in zip(layers, weights, columns, strict=True)
        ]
        total = sum(ranks)
        # The interpreter takes bfloat16 for integers.
        narrow = narrow_products if dtype is torch.float32 else None
        roomy = room.lend(Roomy.apply(x, total), total)
        ys = lora_linears(roomy, beside, adapters, params, narrow=narrow)
        return [RoomyGradient.apply(y, total) for y in ys]

    def reference(x: torch.Tensor, params: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        found = []
        for layer, a_RI, b_OR in zip(layers, params[0::2], params[1::2], strict=True):
            weight_OI, bias_O = layer.weight.read(torch.float32), layer.bias_O
            kept = nn.functional.dropout(x, dropout) if dropout else x
            plain = nn.functional.linear(x, weight_OI, None if bias_O is None else bias_O.float())
            found.append(plain + kept @ a_RI.t() @ b_OR.t() * layer.scaling)
        return found

    results = []
    for compute, x in ((fast, x_TI), (reference, x_TI.float())):
        x = x.clone().requires_grad_()
        params = [matrix.clone().requires_grad_() for matrix in matrices]
        torch.manual_seed(5)
        ys = compute(x, params)
        sum((y.float() * w.float()).sum() for y, w in zip(ys, weighing, strict=True)).backward()  # type: ignore
        results.append([*ys, x.grad, *(param.grad for param in params)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) <= TOLERANCE[dtype]


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
            if self.checkpoints:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
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


@pytest.mark.parametrize("checkpoints", [False, True], ids=["kept", "checkpointed"])
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
    fast = FastLinears(model, dtype)

    found = run(model, x, dtype)

    assert len(fast._forwards) == 8
    assert len(found) == len(plain) == 2 + 16
    for left, right in zip(found, plain, strict=True):
        assert relative_error(left, right) <= 3 * TOLERANCE[dtype]


def test_autograd_keeps_the_input_once_and_the_narrow_products() -> None:
    torch.manual_seed(0)
    model = adapted(Stack(), torch.float32, double=True)
    plain = saved_bytes(model)
    FastLinears(model, torch.float32)

    tokens, ranks, blocks = 10, 4, 2
    # For each block: the input of q, k and v; that of o; four narrow products; both factors of the product.
    expected = blocks * tokens * (64 + 64 + 4 * ranks + 64 + 64)
    assert saved_bytes(model) == plain == 4 * expected


def test_dropout_keeps_a_byte_for_each_input_where_peft_keeps_six() -> None:
    torch.manual_seed(0)
    without = adapted(Stack(), torch.float32, double=True)
    dropped = adapted(Stack(), torch.float32, double=True, lora_dropout=0.1)
    inputs = 2 * 10 * 64 * 4  # two blocks, ten tokens, four layers with a mask of their own
    # Eight for what is left and what it was multiplied by, less the inputs themselves: two for four layers.
    assert saved_bytes(dropped) - saved_bytes(without) == 6 * inputs
    for model in (without, dropped):
        FastLinears(model, torch.float32)

    assert saved_bytes(dropped) - saved_bytes(without) == inputs


def saved_bytes(model: nn.Module) -> int:
    """What autograd keeps of a forward pass beside the model's own weights, each tensor once."""
    own = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(2, 5, 64, requires_grad=True))
    return sum(size for size, _tensor in kept.values())


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
    fast = FastLinears(model, torch.float32)

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
    FastLinears(model, torch.float32)
    model(x)

    found = [block.q_proj(x), block.k_proj(other), block.v_proj(x), block.q_proj(x)]

    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_an_output_that_nobody_uses_has_no_gradient() -> None:
    torch.manual_seed(0)
    model = adapted(Stack(), torch.float32, double=None)
    FastLinears(model, torch.float32)
    model(torch.randn(3, 64))
    block = model.base_model.model.blocks[0]
    x = torch.randn(3, 64, requires_grad=True)
    block.q_proj(x)

    block.v_proj(x).sum().backward()

    assert block.q_proj.lora_B["default"].weight.grad is None
    assert block.q_proj.lora_A["default"].weight.grad is None
    assert block.v_proj.lora_A["default"].weight.grad.any()
    assert x.grad is not None


def test_a_last_output_that_nobody_keeps_is_not_computed_again() -> None:
    first, last = Kept(torch.randn(6, 4)), Kept(torch.randn(4, 6))
    shapes = [(2, 4), (6, 2), (2, 6), (4, 2)]
    parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
    adapters = [
        Adapters(a_RI.detach(), (b_OR.detach(),))
        for a_RI, b_OR in zip(parameters[::2], parameters[1::2], strict=True)
    ]
    x_TI = torch.randn(3, 4, requires_grad=True)

    def compute(x: torch.Tensor) -> torch.Tensor:
        (y,) = lora_linears(x, [Layer(first, None, 0.5, 0.0)], adapters[0], parameters[:2])
        (z,) = lora_linears(y.sin(), [Layer(last, None, 0.5, 0.0)], adapters[1], parameters[2:])
        return x + z

    expected = torch.autograd.grad(compute(x_TI).sum(), [x_TI, *parameters])
    first.reads = last.reads = 0
    output = checkpoint(compute, x_TI, use_reentrant=False)
    found = torch.autograd.grad(output.sum(), [x_TI, *parameters])

    assert (first.reads, last.reads) == (3, 2)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)
