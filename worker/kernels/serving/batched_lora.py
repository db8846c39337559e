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
# Rows of the stacked B matrices of all slots that a program multiplies at once.
_ROWS_PER_TILE = 128
# Tokens and outputs of a program that also activates, and its warps: up to 64 tokens, and for more.
_ACTIVATED_TILES = ((64, 32, 4), (128, 32, 8))


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
    # Only three sizes, since each is compiled separately. The numbers of warps were the fastest on an H200.
    tokens, warps = (16, 8) if count <= 16 else (32, 8) if count <= 32 else (64, 4)
    _expand_kernel[(triton.cdiv(count, tokens), tiles)](
        *given,
        count,
        *strides,
        row_count,
        WIDTHS=widths,
        RANK=rank,
        IS_ONE_TILE=row_count <= _ROWS_PER_TILE,
        HAS_PLUS=plus_NO is not None,
        TOKENS=tokens,
        ROW_TILE=_ROWS_PER_TILE,
        OUTPUT_TILE=_OUTPUTS_PER_TILE,
        num_warps=warps,
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
    tokens, outputs, warps = _ACTIVATED_TILES[count > 64]
    _expand_and_activate_kernel[(triton.cdiv(count, tokens), triton.cdiv(width, outputs))](
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
        IS_ONE_TILE=row_count <= _ROWS_PER_TILE,
        IS_GELU=is_gelu,
        TOKENS=tokens,
        ROW_TILE=_ROWS_PER_TILE,
        OUTPUT_TILE=outputs,
        num_warps=warps,
        **dependent_launch.options(gate_up_NO),
    )
    return out_NI


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
    IS_ONE_TILE: tl.constexpr,
    HAS_PLUS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    has_token = tokens < count
    own_slots = tl.load(slots + tokens, mask=has_token, other=0)
    layer, outputs, has_output = _find_tile(tl.program_id(1), WIDTHS, OUTPUT_TILE)
    # Read without waiting for the tokens' slots.
    first_tile = _read_rows(B, 0, outputs, has_output, output_count, row_count, ROW_TILE)
    dependent_launch.wait(IS_DEPENDENT)
    has_both = has_token[:, None] & has_output[None, :]
    tokens = tokens.to(tl.int64)
    summed = tl.load(y + tokens[:, None] * y_stride + outputs[None, :], mask=has_both, other=0.0).to(
        tl.float32
    )
    if HAS_PLUS:
        summed += tl.load(
            plus + tokens[:, None] * output_count + outputs[None, :], mask=has_both, other=0.0
        ).to(tl.float32)
    summed += _updates(
        inner + layer * RANK,
        first_tile,
        B,
        own_slots,
        tokens,
        outputs,
        has_output,
        inner_stride,
        output_count,
        row_count,
        len(WIDTHS),
        RANK,
        IS_ONE_TILE,
        ROW_TILE,
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
    IS_ONE_TILE: tl.constexpr,
    IS_GELU: tl.constexpr,
    TOKENS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    has_token = tokens < count
    own_slots = tl.load(slots + tokens, mask=has_token, other=0)
    gates = tl.program_id(1) * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)
    has_output = gates < WIDTH
    gate_tile = _read_rows(B, 0, gates, has_output, 2 * WIDTH, row_count, ROW_TILE)
    up_tile = _read_rows(B, 0, WIDTH + gates, has_output, 2 * WIDTH, row_count, ROW_TILE)
    dependent_launch.wait(IS_DEPENDENT)
    has_both = has_token[:, None] & has_output[None, :]
    tokens = tokens.to(tl.int64)
    at = gate_up + tokens[:, None] * gate_up_stride + gates[None, :]
    gate = tl.load(at, mask=has_both, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=has_both, other=0.0).to(tl.float32)
    gate += _updates(
        inner,
        gate_tile,
        B,
        own_slots,
        tokens,
        gates,
        has_output,
        inner_stride,
        2 * WIDTH,
        row_count,
        LAYERS,
        RANK,
        IS_ONE_TILE,
        ROW_TILE,
    )
    up += _updates(
        inner + (LAYERS - 1) * RANK,
        up_tile,
        B,
        own_slots,
        tokens,
        WIDTH + gates,
        has_output,
        inner_stride,
        2 * WIDTH,
        row_count,
        LAYERS,
        RANK,
        IS_ONE_TILE,
        ROW_TILE,
    )
    dtype = out.dtype.element_ty
    active, _slope = swiglu.activation(gate.to(dtype).to(tl.float32), IS_GELU)
    active = active.to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
    tl.store(out + tokens[:, None] * WIDTH + gates[None, :], active.to(dtype), mask=has_both)


@triton.jit
def _updates(
    inner,
    first_tile,
    B,
    own_slots,
    tokens,
    outputs,
    has_output,
    inner_stride,
    output_count,
    row_count,
    LAYERS: tl.constexpr,
    RANK: tl.constexpr,
    IS_ONE_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr,
):
    """What adapters add to outputs of a layer, whose first columns `inner` points to, in float32."""
    summed = _multiply_rows(inner, first_tile, 0, own_slots, tokens, inner_stride, LAYERS, RANK, ROW_TILE)
    if not IS_ONE_TILE:
        for first in range(ROW_TILE, row_count, ROW_TILE):
            rows = first + tl.arange(0, ROW_TILE)
            if tl.max(tl.max((own_slots[:, None] == rows[None, :] // RANK + 1).to(tl.int32), 1), 0) != 0:
                tile = _read_rows(B, first, outputs, has_output, output_count, row_count, ROW_TILE)
                summed += _multiply_rows(
                    inner, tile, first, own_slots, tokens, inner_stride, LAYERS, RANK, ROW_TILE
                )
    return summed


@triton.jit
def _read_rows(B, first, outputs, has_output, output_count, row_count, ROW_TILE: tl.constexpr):
    rows = first + tl.arange(0, ROW_TILE)
    at = B + rows[:, None].to(tl.int64) * output_count + outputs[None, :]
    return tl.load(at, mask=(rows < row_count)[:, None] & has_output[None, :], other=0.0)


@triton.jit
def _multiply_rows(
    inner,
    B_tile,
    first,
    own_slots,
    tokens,
    inner_stride,
    LAYERS: tl.constexpr,
    RANK: tl.constexpr,
    ROW_TILE: tl.constexpr,
):
    """The product with the rows of B from `first` on. Those of slots that no token has count as zeros."""
    rows = first + tl.arange(0, ROW_TILE)
    own = own_slots[:, None] == rows[None, :] // RANK + 1
    columns = rows + rows // RANK * ((LAYERS - 1) * RANK)
    x_tile = tl.load(inner + tokens[:, None] * inner_stride + columns[None, :], mask=own, other=0.0)
    is_used = tl.max(own.to(tl.int32), 0) > 0
    B_tile = tl.where(is_used[:, None], B_tile, 0.0)
    return tl.dot(x_tile, B_tile, input_precision="ieee")
