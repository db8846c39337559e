"""Compiles every kernel for a GPU that need not be there, as it is launched. Prints their names.

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

from worker.kernels import (
    dependent_launch,
    dequantize,
    low_rank_matmul,
    norm,
    rotary,
    swiglu,
    token_scores,
    varlen_attention,
)
from worker.kernels.pending_lora import PendingLora
from worker.kernels.serving import (
    batched_lora,
    decode_heads,
    four_bit_matmul,
    greedy,
    matrix_vector,
    paged_attention,
    prompt_attention,
    skinny_matmul,
)
from worker.models.frozen_weights import AdapterColumns

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


def compile_training(dtype: torch.dtype) -> None:
    tokens, width, rank, layers = 300, 256, 16, 3
    x = torch.zeros(tokens, width, dtype=dtype)
    inner = torch.zeros(tokens, layers * rank, dtype=dtype)
    a, b = torch.zeros(layers * rank, width, dtype=dtype), torch.zeros(width, rank, dtype=dtype)

    for passed, adds_one in ((x, False), (None, True)):
        norm.rms_norm_and_scale(x, x[0], 1e-5, adds_one=adds_one, padding=rank)
        norm.gradient(x, passed, x, x[0], torch.zeros(tokens), adds_one=adds_one, padding=rank)
    for is_gelu in (False, True):
        swiglu.activate(x, x, is_gelu=is_gelu, padding=rank)
        swiglu.gradient(x, x, x, is_gelu=is_gelu)
    low_rank_matmul.gradients(x, inner[:, rank : 2 * rank], b, 2.0, inner[:, :rank])
    under_dropout = ([x.bool()] * layers, [1.1] * layers, [rank] * layers)
    low_rank_matmul.grad_of_x_under_dropout(inner, a, *under_dropout)
    low_rank_matmul.grads_of_a_under_dropout(x, inner, *under_dropout)
    for is_double in (False, True):
        packed, state = quantize_4bit(
            torch.zeros(width, width, dtype=dtype), quant_type="nf4", compress_statistics=is_double
        )
        dequantize.dequantize(packed, state)
        dequantize.dequantize_with_b(packed, state, AdapterColumns(b, rank, layers * rank))
    for softcap in (None, 30.0):
        token_scores.score(x, torch.zeros(tokens, dtype=torch.long), scale=1.0, softcap=softcap)
    heads = torch.zeros(tokens, 4, 128, dtype=dtype, requires_grad=True)
    starts = torch.tensor([0, 100, tokens], dtype=torch.int32)
    varlen_attention.attend(heads, heads, heads, starts, scale=0.1, window=None).sum().backward()


def compile_serving(dtype: torch.dtype) -> None:
    tokens, width, slots, rank, heads = 4, 256, 3, 16, 4
    x, each = torch.zeros(tokens, width, dtype=dtype), torch.zeros(tokens, dtype=torch.long)
    for inputs in (width, 4096):
        one_1I, weight_OI = torch.zeros(1, inputs, dtype=dtype), torch.zeros(width, inputs, dtype=dtype)
        matrix_vector.product(one_1I, weight_OI, x[0], x[:1])
        input_norm = matrix_vector.InputNorm(one_1I[0], 1e-5)
        matrix_vector.product(one_1I, weight_OI, norm=input_norm)
        matrix_vector.product(one_1I, weight_OI, norm=input_norm, is_gated=True)
    for count in (2, 9, 20):
        few, plus_NO = torch.zeros(count, width, dtype=dtype), torch.zeros(count, 8448, dtype=dtype)
        skinny_matmul.product(few, torch.zeros(width, width, dtype=dtype))
        skinny_matmul.product(few, torch.zeros(8448, width, dtype=dtype), plus_NO[0], plus_NO)
    greedy.choose(x, -1)
    greedy.advance(each, each, each, each, width)
    b_SRO = torch.zeros(slots, rank, width, dtype=dtype)
    for count in (1, tokens):
        y_NO = x[:count]
        batched_lora.expand(y_NO, y_NO[:, : slots * rank], each, b_SRO, (width,), y_NO)
    for count in (1, 20):
        many = torch.zeros(count, width, dtype=dtype)
        slots_N = torch.zeros(count, dtype=torch.long)
        update = PendingLora(many[:, : slots * rank], slots_N, b_SRO, 1)
        for given in (None, update):
            norm.add_and_norm(many, many, given, x[0], 1e-5, output_weight_H=None if given else x[0])
        swiglu.update_and_activate(many, update)
        batched_lora.expand_and_activate(many, update)
        heads_update = PendingLora(torch.zeros(count, 3 * slots * rank, dtype=dtype), slots_N, b_SRO, 3)
        cache = torch.zeros(2, 16, 1, 64, dtype=dtype)
        places = decode_heads.CachePlaces(
            cache, cache, torch.zeros(count, 1, dtype=torch.int32), slots_N, slots_N
        )
        head_norms = decode_heads.HeadNorms(x[0], x[0], 1e-5)
        angles = many[:, :64].contiguous(), many[:, :64].contiguous()
        for given, norms in ((None, None), (heads_update, head_norms)):
            decode_heads.prepare(many, given, angles, places, norms)
    states_HND = x.view(tokens, heads, width // heads).transpose(0, 1)
    rotary.rotate(states_HND, states_HND, x[:, :64].contiguous(), x[:, :64].contiguous())
    blocks_PSHD = torch.zeros(2, 16, heads, width // heads, dtype=dtype)
    block_tables_RP, settings = (
        torch.zeros(tokens, 1, dtype=torch.int32),
        paged_attention.AttentionSettings(0.1),
    )
    paged_attention.store(states_HND, states_HND, blocks_PSHD, blocks_PSHD, block_tables_RP, each, each)
    for keys_PSHD in (blocks_PSHD, blocks_PSHD[:, :, :2].contiguous()):
        paged_attention.decode(states_HND, keys_PSHD, keys_PSHD, block_tables_RP, each, settings)
    tiles_M4 = torch.zeros(1, 4, dtype=torch.int32)
    prompt_attention.attend(states_HND, blocks_PSHD, blocks_PSHD, block_tables_RP, tiles_M4, settings)


def compile_four_bit(dtype: torch.dtype) -> None:
    few, usual, many = 256, 8448, 16640
    for count, outputs in ((1, few), (1, usual), (1, many), (2, few), (64, few)):
        packed, state = quantize_4bit(torch.zeros(outputs, 256, dtype=dtype), quant_type="nf4")
        x_NI, plus_NO = torch.zeros(count, 256, dtype=dtype), torch.zeros(count, outputs, dtype=dtype)
        four_bit_matmul.products(x_NI, packed, state.absmax, state.code, plus_NO[0], plus_NO)
        four_bit_matmul.products(x_NI, packed, state.absmax, state.code, rows_CI=x_NI[:2])


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentGpu(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_only
    dependent_launch._is_supported = lambda _device: True
    compile_training(torch.bfloat16)
    compile_serving(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        compile_four_bit(dtype)
    print(*sorted(compiled))
