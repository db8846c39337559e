"""Compiles every training kernel for a GPU that need not be there, as it is launched. Prints their names.

    python -m tests.worker.kernels.compile_all 90      compute capability 9.0

In an own process: Triton is in its interpreter elsewhere.
"""

import sys
from functools import partial
from typing import Any

import torch
import triton
from bitsandbytes.functional import quantize_4bit
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from worker.kernels import dequantize, low_rank_matmul, residual_norm, varlen_attention
from worker.models.frozen_weights import Columns

compiled: set[str] = set()


class AbsentGpu:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: Any) -> Any:
    compiled.add(kernel.fn.__name__)
    return partial(kernel.warmup, grid=grid)


def compile_all(dtype: torch.dtype) -> None:
    tokens, width, rank, layers = 300, 256, 16, 3
    x = torch.zeros(tokens, width, dtype=dtype)
    inner = torch.zeros(tokens, layers * rank, dtype=dtype)
    a, b = torch.zeros(layers * rank, width, dtype=dtype), torch.zeros(width, rank, dtype=dtype)

    residual_norm.norm(x, x[0], 1e-5, room=rank)
    residual_norm.gradient(x, x, x, x[0], torch.zeros(tokens), room=rank)
    low_rank_matmul.add(x, inner[:, rank : 2 * rank], b)
    low_rank_matmul.gradients(x, inner[:, rank : 2 * rank], b, 2.0, inner[:, :rank])
    under_dropout = ([x.bool()] * layers, [1.1] * layers, [rank] * layers)
    low_rank_matmul.through_dropout(inner, a, *under_dropout)
    low_rank_matmul.grads_of_a_under_dropout(x, inner, *under_dropout)
    for is_double in (False, True):
        packed, state = quantize_4bit(
            torch.zeros(width, width, dtype=dtype), quant_type="nf4", compress_statistics=is_double
        )
        dequantize.unpack(packed, state)
        dequantize.unpack_beside(packed, state, Columns(b, rank, layers * rank))
    heads = torch.zeros(tokens, 4, 128, dtype=dtype, requires_grad=True)
    starts = torch.tensor([0, 100, tokens], dtype=torch.int32)
    varlen_attention.attend(heads, heads, heads, starts, scale=0.1, window=None).sum().backward()


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentGpu(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_only
    compile_all(torch.bfloat16)
    print(*sorted(compiled))
