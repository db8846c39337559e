"""The kernel for SwiGLU against PyTorch's own functions."""

import torch

from worker.kernels import swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_swiglu_of_rows_with_a_stride():
    both = torch.randn(3, 2 * 40, device=DEVICE)
    gate, up = both.split(40, -1)

    torch.testing.assert_close(swiglu.silu_times(gate, up), torch.nn.functional.silu(gate) * up)
