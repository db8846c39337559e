"""Merged layers compute what they did apart, dense and in 4 bits, with and without appended rows."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from worker.inference.model.linears import compile_products, merge_linears, replace_forwards

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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

    whole = nn.ModuleDict({"attention": model})
    groups = merge_linears(whole)

    assert [group.names for group in groups] == [
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        ["attention.o_proj"],
    ]
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)
    outputs, _saved = groups[0].forward(x[0])
    torch.testing.assert_close(outputs, [one[0] for one in expected[:3]], atol=1e-5, rtol=1e-4)
    (added,), _saved = groups[1].forward(outputs[0], x[0])
    torch.testing.assert_close(added, expected[3][0] + x[0], atol=1e-5, rtol=1e-4)


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

    for row_count in (8, 4, 0):
        y_NO, inner_NC = group.weights.product_with_rows(x_NI, row_count)

        torch.testing.assert_close(y_NO, expected)
        torch.testing.assert_close(inner_NC, x_NI @ rows[:row_count].T)
    torch.testing.assert_close(group.weights.product(x_NI), expected)


@pytest.mark.parametrize("is_merged_before", [True, False])
@pytest.mark.parametrize("bits", [16, 4])
@torch.inference_mode()
def test_layers_that_are_replaced_one_by_one_compute_what_they_did(bits, is_merged_before):
    torch.manual_seed(0)
    model = Attention(bias=True)
    model = model if bits == 16 else in_four_bits(model)
    x = torch.randn(1, 5, 64)
    expected = model(x)
    if is_merged_before:
        merge_linears(nn.ModuleDict({"attention": model}))

    groups = replace_forwards(model)

    assert [group.names for group in groups] == [["q_proj"], ["k_proj"], ["v_proj"], ["o_proj"]]
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)
    groups[0].weights.append_rows(8).fill_(1.0)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)
    groups[1].update = lambda x_NI, plus_NO: groups[1].weights.product(x_NI, plus_NO) + 1
    torch.testing.assert_close(model(x)[1], expected[1] + 1, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 65])
@torch.inference_mode()
def test_four_bit_weights_compute_the_same_by_a_kernel(count):
    torch.manual_seed(0)
    group = merge_linears(nn.ModuleDict({"attention": in_four_bits(Attention(bias=True)).to(DEVICE)}))[0]
    x_NI, plus_NO = torch.randn(count, 64, device=DEVICE), torch.randn(count, 256, device=DEVICE)
    rows = group.weights.append_rows(24)
    rows.copy_(torch.randn(24, 64))
    expected = group.weights.product(x_NI, plus_NO), *group.weights.product_with_rows(x_NI, 16)

    group.weights.use_kernels()

    found = group.weights.product(x_NI, plus_NO), *group.weights.product_with_rows(x_NI, 16)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 33])
@torch.inference_mode()
def test_dense_weights_compute_the_same_by_a_kernel(count):
    torch.manual_seed(0)
    group = merge_linears(nn.ModuleDict({"attention": Attention(bias=True).half().to(DEVICE)}))[0]
    x_NI, plus_NO = (
        torch.randn(count, 64, device=DEVICE).half(),
        torch.randn(count, 256, device=DEVICE).half(),
    )
    group.weights.append_rows(24).copy_(torch.randn(24, 64))
    expected = group.weights.product(x_NI, plus_NO), *group.weights.product_with_rows(x_NI, 16)

    group.weights.use_kernels()

    found = group.weights.product(x_NI, plus_NO), *group.weights.product_with_rows(x_NI, 16)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


def test_kernels_are_compiled_once_for_each_shape_and_number_of_tokens_whatever_fails(monkeypatch):
    groups = merge_linears(nn.ModuleDict({"first": Attention(bias=True), "second": Attention(bias=True)}))
    compiled = []

    def compile_kernels(weights, count):
        compiled.append((*weights.plain()[0].shape, count))
        if count == 1:
            raise RuntimeError("no compiler")

    monkeypatch.setattr(type(groups[0].weights), "compile_kernels", compile_kernels)

    compile_products(groups, [1, 8])

    shapes = [(256, 64), (64, 128)]
    assert sorted(compiled) == sorted((*shape, count) for shape in shapes for count in (1, 8))
