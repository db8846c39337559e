"""The B matmul of LoRA for a mixed batch: one kernel multiplies each token by its own adapter's matrix.

The products with the A matrices of all adapters are computed before; each token uses the columns of its own
adapter. (S-LoRA, Sheng et al. 2023, and Punica, Chen et al. 2023, group tokens by adapter instead.)
Shape letters: N tokens, S slots, M linear layers with the same input, R rank, O outputs of all M layers,
C columns (S times M times R).
"""

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch, lora_tiles, swiglu
from worker.kernels.pending_lora import PendingLora

_OUTPUTS_PER_TILE = 64
# Rows of the stacked B matrices of all slots that a program multiplies at once, while the next are read. The
# fastest on an H200 (docs/decisions/0072): a program that keeps many rows leaves no room for a second one.
_ROWS_PER_TILE = tl.constexpr(32)
_STAGES = tl.constexpr(3)


def expand(
    y_NO: torch.Tensor,
    inner_NC: torch.Tensor,
    slots_N: torch.Tensor,
    B_SRO: torch.Tensor,
    widths: tuple[int, ...],
    plus_NO: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns y plus each token's columns of `inner_NC` times its adapter's B matrix, plus `plus_NO`, [N, O].

    The columns C are ordered by slot, then layer, then rank. Slot 0 is no adapter; slot s has index s - 1.
    They may be those of the first slots only, where no token has a higher one. `widths` are the numbers of
    outputs of the layers; R is a multiple of 16. Sums are in float32.
    """
    _, rank, outputs = B_SRO.shape
    count, columns = inner_NC.shape
    row_count = columns // len(widths)
    out_NO = y_NO.new_empty(count, outputs)
    tiles = sum(triton.cdiv(width, _OUTPUTS_PER_TILE) for width in widths)
    given = (y_NO, inner_NC, slots_N, B_SRO, plus_NO if plus_NO is not None else y_NO, out_NO)
    strides = (y_NO.stride(0), inner_NC.stride(0), outputs)
    if count == 1:
        _expand_one_kernel[(tiles,)](
            *given,
            outputs,
            WIDTHS=widths,
            RANK=rank,
            HAS_PLUS=plus_NO is not None,
            OUTPUT_TILE=_OUTPUTS_PER_TILE,
            num_warps=2,
            **dependent_launch.options(y_NO),
        )
        return out_NO
    tokens = _tokens_per_tile(count)
    _expand_kernel[(triton.cdiv(count, tokens), tiles)](
        *given,
        count,
        *strides,
        row_count,
        WIDTHS=widths,
        RANK=rank,
        HAS_PLUS=plus_NO is not None,
        TOKENS=tokens,
        OUTPUT_TILE=_OUTPUTS_PER_TILE,
        num_warps=4,
        **dependent_launch.options(y_NO),
    )
    return out_NO


def expand_and_activate(
    gate_up_NO: torch.Tensor, given: PendingLora, *, is_gelu: bool = False
) -> torch.Tensor:
    """As `swiglu.update_and_activate`, for more tokens than one."""
    count, width = len(gate_up_NO), gate_up_NO.shape[1] // 2
    row_count = given.inner_NC.shape[1] // given.layers
    out_NI = gate_up_NO.new_empty(count, width)
    tokens = _tokens_per_tile(count)
    _expand_and_activate_kernel[(triton.cdiv(count, tokens), triton.cdiv(width, _OUTPUTS_PER_TILE))](
        gate_up_NO,
        given.inner_NC,
        given.slots_N,
        given.B_SRO,
        out_NI,
        count,
        gate_up_NO.stride(0),
        given.inner_NC.stride(0),
        row_count,
        WIDTH=width,
        RANK=given.B_SRO.shape[1],
        LAYERS=given.layers,
        IS_GELU=is_gelu,
        TOKENS=tokens,
        OUTPUT_TILE=_OUTPUTS_PER_TILE,
        num_warps=4,
        **dependent_launch.options(gate_up_NO),
    )
    return out_NI


def _tokens_per_tile(count: int) -> int:
    """Tokens of a program. Only three sizes, since each is compiled separately."""
    return 16 if count <= 16 else 32 if count <= 32 else 64


@triton.jit
def _expand_one_kernel(
    y,
    inner,
    slots,
    B,
    plus,
    out,
    output_count,
    WIDTHS: tl.constexpr,
    RANK: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """One token: only the rows of its own adapter are read."""
    dependent_launch.launch_next(IS_DEPENDENT)
    layer, outputs, has_output = _find_tile(tl.program_id(0), WIDTHS, OUTPUT_TILE)
    slot, tile = lora_tiles.read(slots, B, output_count, 0, outputs, has_output, RANK)
    dependent_launch.wait(IS_DEPENDENT)
    summed = tl.load(y + outputs, mask=has_output, other=0.0).to(tl.float32)
    summed += lora_tiles.update(
        inner, slot, tile, B, 0, output_count, 0, layer, outputs, has_output, RANK, len(WIDTHS)
    )
    if HAS_PLUS:
        summed += tl.load(plus + outputs, mask=has_output, other=0.0).to(tl.float32)
    tl.store(out + outputs, summed.to(out.dtype.element_ty), mask=has_output)


@triton.jit
def _find_tile(tile, WIDTHS: tl.constexpr, OUTPUT_TILE: tl.constexpr):
    """The layer of a tile, its outputs, and which of these there are. No tile spans two layers."""
    layer, start, end = 0, tile * OUTPUT_TILE, WIDTHS[0]
    first, first_tile = 0, 0
    for index in tl.static_range(1, len(WIDTHS)):
        first += WIDTHS[index - 1]
        first_tile += (WIDTHS[index - 1] + OUTPUT_TILE - 1) // OUTPUT_TILE
        is_behind = tile >= first_tile
        layer = tl.where(is_behind, index, layer)
        start = tl.where(is_behind, first + (tile - first_tile) * OUTPUT_TILE, start)
        end = tl.where(is_behind, first + WIDTHS[index], end)
    outputs = start + tl.arange(0, OUTPUT_TILE)
    return layer, outputs, outputs < end


@triton.jit(do_not_specialize=["count"])
def _expand_kernel(
    y,
    inner,
    slots,
    B,
    plus,
    out,
    count,
    y_stride,
    inner_stride,
    output_count,
    row_count,
    WIDTHS: tl.constexpr,
    RANK: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    tokens, has_token, own_slots = _find_tokens(slots, count, TOKENS)
    layer, outputs, has_output = _find_tile(tl.program_id(1), WIDTHS, OUTPUT_TILE)
    dependent_launch.wait(IS_DEPENDENT)
    has_both = has_token[:, None] & has_output[None, :]
    summed = tl.load(y + tokens[:, None] * y_stride + outputs[None, :], mask=has_both, other=0.0).to(
        tl.float32
    )
    if HAS_PLUS:
        summed += tl.load(
            plus + tokens[:, None] * output_count + outputs[None, :], mask=has_both, other=0.0
        ).to(tl.float32)
    summed = _update(
        summed,
        inner + tokens * inner_stride + layer * RANK,
        own_slots,
        B + outputs,
        has_output,
        output_count,
        row_count,
        RANK,
        len(WIDTHS),
    )
    place = out + tokens[:, None] * output_count + outputs[None, :]
    tl.store(place, summed.to(out.dtype.element_ty), mask=has_both)


@triton.jit(do_not_specialize=["count"])
def _expand_and_activate_kernel(
    gate_up,
    inner,
    slots,
    B,
    out,
    count,
    gate_up_stride,
    inner_stride,
    row_count,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    LAYERS: tl.constexpr,
    IS_GELU: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    tokens, has_token, own_slots = _find_tokens(slots, count, TOKENS)
    outputs = tl.program_id(1) * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)
    has_output = outputs < WIDTH
    dependent_launch.wait(IS_DEPENDENT)
    has_both = has_token[:, None] & has_output[None, :]
    at = gate_up + tokens[:, None] * gate_up_stride + outputs[None, :]
    gate = tl.load(at, mask=has_both, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=has_both, other=0.0).to(tl.float32)
    inner += tokens * inner_stride
    gate = _update(gate, inner, own_slots, B + outputs, has_output, 2 * WIDTH, row_count, RANK, LAYERS)
    inner += (LAYERS - 1) * RANK
    up = _update(up, inner, own_slots, B + WIDTH + outputs, has_output, 2 * WIDTH, row_count, RANK, LAYERS)
    dtype = out.dtype.element_ty
    active = swiglu.activate_rounded(gate, up, dtype, IS_GELU)
    tl.store(out + tokens[:, None] * WIDTH + outputs[None, :], active, mask=has_both)


@triton.jit
def _find_tokens(slots, count, TOKENS: tl.constexpr):
    """The tokens of a program, which of these there are, and their slots, read before `wait`."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    has_token = tokens < count
    return tokens.to(tl.int64), has_token, tl.load(slots + tokens, mask=has_token, other=0)


@triton.jit
def _update(
    summed,
    inner,
    own_slots,
    B,
    has_output,
    output_count,
    row_count,
    RANK: tl.constexpr,
    LAYERS: tl.constexpr,
):
    """`summed` plus what the adapter of each token adds to outputs of a layer, in float32.

    `inner` points to the layer's first columns of each token, `B` to the first row of each output. Weights of
    other tokens' adapters count as zero times what they are, and all are finite (adapters/cache.py).
    """
    for first in tl.range(0, row_count, _ROWS_PER_TILE, num_stages=_STAGES):
        rows = first + tl.arange(0, _ROWS_PER_TILE)
        columns = rows + rows // RANK * ((LAYERS - 1) * RANK)
        is_own = own_slots[:, None] == rows[None, :] // RANK + 1
        x_tile = tl.load(inner[:, None] + columns[None, :], mask=is_own, other=0.0)
        has_row = (rows < row_count)[:, None] & has_output[None, :]
        B_tile = tl.load(B[None, :] + rows[:, None].to(tl.int64) * output_count, mask=has_row, other=0.0)
        summed = tl.dot(x_tile, B_tile, summed, input_precision="ieee")
    return summed
