"""Merged layers compute what they did apart, dense and in 4 bits, with and without appended rows."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from worker.inference.model.linears import MergedLinears, merge_linears


class Attention(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(64, 128, bias=bias)
        self.k_proj = nn.Linear(64, 64, bias=bias)
        self.v_proj = nn.Linear(64, 64, bias=bias)
        self.o_proj = nn.Linear(128, 64, bias=bias)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        q = self.q_proj(x)
        return [q, self.k_proj(x), self.v_proj(x), self.o_proj(q)]


def in_four_bits(model: nn.Module) -> nn.Module:
    for name, linear in list(model.named_children()):
        packed = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.float32,
            quant_type="nf4",
        )
        packed.load_state_dict(linear.state_dict())
        setattr(model, name, packed.to("cpu"))
        packed.support_avx512bf16_for_cpu = False
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [16, 4])
@torch.inference_mode()
def test_merged_layers_compute_what_they_did_apart(bias, bits):
    torch.manual_seed(0)
    model = Attention(bias=bias)
    model = model if bits == 16 else in_four_bits(model)
    x = torch.randn(1, 5, 64)
    expected = model(x)

    groups = merge_linears(nn.ModuleDict({"attention": model}))

    assert [group.names for group in groups] == [
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        ["attention.o_proj"],
    ]
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [16, 4])
@torch.inference_mode()
def test_appended_rows_are_part_of_the_product_and_do_not_change_it(bits):
    torch.manual_seed(0)
    model = Attention(bias=True)
    model = model if bits == 16 else in_four_bits(model)
    group = merge_linears(nn.ModuleDict({"attention": model}))[0]
    x_NI = torch.randn(5, 64)
    expected = group.weights.product(x_NI)
    rows = group.weights.append_rows(8)
    rows.copy_(torch.randn(8, 64))

    y_NO, inner_NC = group.weights.product_with_rows(x_NI)

    torch.testing.assert_close(y_NO, expected)
    torch.testing.assert_close(group.weights.product(x_NI), expected)
    torch.testing.assert_close(inner_NC, x_NI @ rows.T)


@torch.inference_mode()
def test_a_part_is_never_taken_from_another_input():
    torch.manual_seed(0)
    linears = [nn.Linear(4, 3), nn.Linear(4, 2)]
    weights = [linear.weight.clone() for linear in linears]
    group = MergedLinears(["gate_proj", "up_proj"], linears)
    first, second = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    linears[0](first)

    torch.testing.assert_close(linears[1](second), second @ weights[1].T + linears[1].bias)
    torch.testing.assert_close(linears[0](second), second @ weights[0].T + linears[0].bias)
    assert group.widths == [3, 2]
