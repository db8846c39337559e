"""Linear layers for a single token: a matrix-vector product, bound by the speed of reading the weight.

What lies around the product is part of it: the norm of its input, the adapter, the activation, and adding to
the residual stream. Shape letters: I inputs, O outputs, M layers with the same input, R rank, S slots.
"""

import torch
import triton
import triton.language as tl

from worker.kernels.lora_update import InputNorm, OneTokenLora

_WIDE_STEP = 4096


def product(
    x_1I: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    plus_1O: torch.Tensor | None = None,
    *,
    outputs: int | None = None,
    norm: InputNorm | None = None,
    is_gated: bool = False,
    lora: OneTokenLora | None = None,
    ready: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns x · Wᵀ + bias + plus, [1, O]; with a norm, of the normed x. Sums are in float32.

    `outputs`: of the first so many rows of the weight; None: of all. `is_gated`: silu(gate) · up, [1, O / 2];
    the weight of gate lies over that of up, without bias. `lora`: with what the adapter adds; its A is below
    the weight's first `outputs` rows, and `ready` [1] int32 is zero, and no other product's.
    """
    outputs, inputs = outputs or len(weight_OI), weight_OI.shape[1]
    row_count = outputs // 2 if is_gated else outputs
    y_1O = x_1I.new_empty(1, row_count)
    rows, step, warps, unroll = _cut(inputs, has_norm=norm is not None, is_gated=is_gated)
    rank = lora.B_SRO.shape[1] if lora else 0
    columns = rank * len(lora.widths) if lora else 0
    inner_C = torch.empty(max(1, columns), dtype=torch.float32, device=x_1I.device)
    _product_kernel[(triton.cdiv(row_count, rows) + triton.cdiv(columns, rows),)](
        x_1I,
        norm.weight_I if norm else x_1I,
        weight_OI,
        bias_O if bias_O is not None else x_1I,
        plus_1O if plus_1O is not None else x_1I,
        y_1O,
        lora.slots_1 if lora else x_1I,
        lora.B_SRO if lora else x_1I,
        inner_C,
        ready if ready is not None else inner_C,
        row_count,
        outputs,
        weight_OI.stride(0),
        norm.epsilon if norm else 0.0,
        INPUTS=inputs,
        HAS_NORM=norm is not None,
        IS_GATED=is_gated,
        HAS_BIAS=bias_O is not None,
        HAS_PLUS=plus_1O is not None,
        WIDTHS=lora.widths if lora else (outputs,),
        RANK=rank,
        RANK_BLOCK=triton.next_power_of_2(max(1, rank)),
        ROWS=rows,
        STEP=step,
        UNROLL=unroll,
        num_warps=warps,
    )
    return y_1O


def _cut(inputs: int, *, has_norm: bool, is_gated: bool) -> tuple[int, int, int, int]:
    """Rows and inputs of a tile, warps and unrolling: the fastest on an H200 at 4,096 and 11,008 inputs."""
    if inputs % _WIDE_STEP:
        return 2, 512, 2, 4
    if is_gated:
        return 1, _WIDE_STEP, 4, 1
    return (4, _WIDE_STEP, 16, 1) if has_norm else (1, _WIDE_STEP, 8, 1)


# Compiled for each number of inputs: a loop of unknown length is slower (docs/serving-speed.md).
@triton.jit
def _product_kernel(
    x,
    norm_weight,
    weight,
    bias,
    plus,
    y,
    slots,
    B,
    inner,
    ready,
    row_count,
    output_count,
    weight_stride,
    epsilon,
    INPUTS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    WIDTHS: tl.constexpr,
    RANK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The first programs multiply with the adapter's A; the others need that only at their end.

    Programs start in the order of their numbers, on which Stream-K (Osama et al. 2023) relies, too.
    """
    A_ROWS: tl.constexpr = RANK * len(WIDTHS)
    A_PROGRAMS: tl.constexpr = (A_ROWS + ROWS - 1) // ROWS
    program = tl.program_id(0)
    rows = (program - A_PROGRAMS) * ROWS + tl.arange(0, ROWS)
    has_row = (rows >= 0) & (rows < row_count)
    weight_rows = rows.to(tl.int64)
    is_inner = False
    if RANK > 0:
        is_inner = program < A_PROGRAMS
        slot = tl.load(slots).to(tl.int64)
        inner_rows = program * ROWS + tl.arange(0, ROWS)
        has_inner = inner_rows < tl.where(slot > 0, A_ROWS, 0)
        weight_rows = tl.where(is_inner, output_count + (slot - 1) * A_ROWS + inner_rows, weight_rows)
        ranks = tl.arange(0, RANK_BLOCK)
        has_B = has_row[:, None] & (ranks < tl.where(slot > 0, RANK, 0))[None, :]
        at_B = B + ((slot - 1) * RANK + ranks)[None, :] * output_count + rows[:, None]
        B_rows = tl.load(at_B, mask=has_B, other=0.0).to(tl.float32)
        if IS_GATED:
            up_B_rows = tl.load(at_B + row_count, mask=has_B, other=0.0).to(tl.float32)
        is_read = has_row | has_inner
    else:
        is_read = has_row
    at_weight = weight + weight_rows[:, None] * weight_stride
    at_up = weight + (row_count + rows[:, None].to(tl.int64)) * weight_stride
    summed = tl.zeros([ROWS, STEP], tl.float32)
    up_summed = tl.zeros([ROWS, STEP], tl.float32)
    squares = tl.zeros([STEP], tl.float32)
    for first in tl.range(0, INPUTS, STEP, loop_unroll_factor=UNROLL, num_stages=1):
        inputs = first + tl.arange(0, STEP)
        weights = _load(at_weight, inputs, is_read, INPUTS, STEP)
        if IS_GATED:
            up_weights = _load(at_up, inputs, has_row, INPUTS, STEP)
        x_part = _load_vector(x, inputs, INPUTS, STEP)
        if HAS_NORM:
            squares += x_part * x_part
            x_part *= _load_vector(norm_weight, inputs, INPUTS, STEP)
        summed += weights * x_part[None, :]
        if IS_GATED:
            up_summed += up_weights * x_part[None, :]
    total = tl.sum(summed, 1)
    up_total = tl.sum(up_summed, 1)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / INPUTS + epsilon)
        total *= scale
        up_total *= scale
    if RANK > 0:
        if is_inner:
            tl.store(inner + inner_rows, total, mask=has_inner)
            # All threads have stored before the program counts itself.
            tl.debug_barrier()
            tl.atomic_add(ready, 1, sem="release")
        elif slot > 0:
            while tl.load(ready, volatile=True) < A_PROGRAMS:
                pass
            layers = tl.zeros([ROWS], tl.int32)
            end = 0
            for index in tl.static_range(0, len(WIDTHS) - 1):
                end += WIDTHS[index]
                layers += (rows >= end).to(tl.int32)
            at_inner = inner + layers[:, None] * RANK + ranks[None, :]
            # Past the L1 cache, which does not see other programs' writes.
            inner_R = tl.load(at_inner, mask=(ranks < RANK)[None, :], other=0.0, cache_modifier=".cg")
            total += tl.sum(inner_R * B_rows, 1)
            if IS_GATED:
                at_up_inner = inner + (len(WIDTHS) - 1) * RANK + ranks[None, :]
                up_inner_R = tl.load(
                    at_up_inner, mask=(ranks < RANK)[None, :], other=0.0, cache_modifier=".cg"
                )
                up_total += tl.sum(up_inner_R * up_B_rows, 1)
    if IS_GATED:
        total = total * tl.sigmoid(total) * up_total
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=has_row, other=0.0).to(tl.float32)
    if HAS_PLUS:
        total += tl.load(plus + rows, mask=has_row, other=0.0).to(tl.float32)
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=has_row)


@triton.jit
def _load(weight, inputs, has_row, INPUTS: tl.constexpr, STEP: tl.constexpr):
    """Weights of some rows and inputs, in float32. They are read once: nothing keeps them in a cache."""
    mask = has_row[:, None]
    if INPUTS % STEP != 0:
        mask = mask & (inputs < INPUTS)[None, :]
    part = tl.load(weight + inputs[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
    return part.to(tl.float32)


@triton.jit
def _load_vector(vector, inputs, INPUTS: tl.constexpr, STEP: tl.constexpr):
    if INPUTS % STEP == 0:
        return tl.load(vector + inputs).to(tl.float32)
    else:
        return tl.load(vector + inputs, mask=inputs < INPUTS, other=0.0).to(tl.float32)
