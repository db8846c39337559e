"""The kernels for gated activations against PyTorch's own functions and autograd."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from tests.worker.kernels.pending_loras import make_update
from worker.kernels import swiglu
from worker.kernels.serving import batched_lora


@pytest.mark.parametrize("is_gelu", [False, True], ids=["silu", "gelu"])
@pytest.mark.parametrize("padding", [0, 16])
def test_an_activation_and_its_gradient(device: torch.device, padding: int, is_gelu: bool) -> None:
    torch.manual_seed(0)
    gate_NI, up_NI = (2 * torch.randn(3, 2 * 40, device=device)).split(40, -1)
    grad_NI = torch.randn(3, 40, device=device)
    leaves = [one.clone().requires_grad_() for one in (gate_NI, up_NI)]
    active_NI = functional.gelu(leaves[0], approximate="tanh") if is_gelu else functional.silu(leaves[0])
    expected_NI = active_NI * leaves[1]
    expected_grads = torch.autograd.grad(expected_NI, leaves, grad_NI)

    found_NI = swiglu.activate(gate_NI, up_NI, is_gelu=is_gelu, padding=padding)
    swiglu.gradient(grad_NI, gate_NI, up_NI, is_gelu=is_gelu)

    assert found_NI.stride() == (40 + padding, 1)
    torch.testing.assert_close(found_NI, expected_NI, rtol=1e-4, atol=1e-5)
    for found, expected in zip((gate_NI, up_NI), expected_grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_gelu", [False, True], ids=["silu", "gelu"])
@pytest.mark.parametrize("widths", [[150, 150], [300]], ids=["two layers", "one layer"])
@pytest.mark.parametrize(
    ("compute", "count", "slots"),
    [
        (swiglu.update_and_activate, 5, 3),
        (batched_lora.expand_and_activate, 5, 3),
        (batched_lora.expand_and_activate, 70, 10),
    ],
    ids=["of each token", "of all tokens", "of all tokens with many slots"],
)
def test_an_activation_of_what_adapters_change(
    device: torch.device,
    compute: Callable[..., torch.Tensor],
    count: int,
    slots: int,
    widths: list[int],
    is_gelu: bool,
) -> None:
    torch.manual_seed(0)
    # Rows lie apart, as a product with the rows of adapters leaves them.
    gate_up_NO = torch.randn(count, 307, device=device)[:, :300]
    update, added_NO = make_update(count, widths, str(device), slots)

    found_NI = compute(gate_up_NO, update, is_gelu=is_gelu)

    gate_NI, up_NI = (gate_up_NO + added_NO).chunk(2, 1)
    active_NI = functional.gelu(gate_NI, approximate="tanh") if is_gelu else functional.silu(gate_NI)
    torch.testing.assert_close(found_NI, active_NI * up_NI, rtol=1e-4, atol=1e-4)
