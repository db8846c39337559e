"""The B matmul of LoRA for a mixed batch: one kernel multiplies each token by its own adapter's matrix.

The products with the A matrices of all adapters are computed before; each token uses the columns of its own
adapter. (S-LoRA, Sheng et al. 2023, and Punica, Chen et al. 2023, group tokens by adapter instead.)
Shape letters: N tokens, S slots, M linear layers with the same input, R rank, O outputs of all M layers,
C columns (M times S times R), T tiles of the outputs.
"""

import torch
import triton
import triton.language as tl

_OUTPUTS_PER_TILE = 64
# Rows of the stacked B matrices of all slots that a program multiplies at once.
_ROWS_PER_TILE = 128


def output_tiles(widths: list[int]) -> list[tuple[int, int, int]]:
    """Cut the concatenated outputs of several layers into tiles (layer, first output, end)."""
    cut, first = [], 0
    for layer, width in enumerate(widths):
        for start in range(0, width, _OUTPUTS_PER_TILE):
            cut.append((layer, first + start, first + min(start + _OUTPUTS_PER_TILE, width)))
        first += width
    return cut


def expand(
    y_NO: torch.Tensor,
    inner_NC: torch.Tensor,
    slots_N: torch.Tensor,
    B_SRO: torch.Tensor,
    tiles_T3: torch.Tensor,
) -> torch.Tensor:
    """Returns y plus the columns of `inner_NC` of each token's adapter times its B matrix, [N, O].

    The columns C are ordered by layer, then slot, then rank. Slot 0 is no adapter; slot s has index s - 1.
    `tiles_T3` comes from `output_tiles`.
    """
    slots, rank, outputs = B_SRO.shape
    count = len(y_NO)
    # Only three sizes, since each is compiled separately.
    tokens = 16 if count <= 16 else 32 if count <= 32 else 64
    out_NO = y_NO.new_empty(count, outputs)
    _expand_kernel[(triton.cdiv(count, tokens), len(tiles_T3))](
        y_NO,
        inner_NC,
        slots_N,
        B_SRO,
        tiles_T3,
        out_NO,
        count,
        y_NO.stride(0),
        inner_NC.stride(0),
        outputs,
        slots * rank,
        RANK=rank,
        IS_ONE_TILE=slots * rank <= _ROWS_PER_TILE,
        TOKENS=tokens,
        ROW_TILE=_ROWS_PER_TILE,
        OUTPUT_TILE=_OUTPUTS_PER_TILE,
        num_warps=4,
    )
    return out_NO


@triton.jit(do_not_specialize=["count"])
def _expand_kernel(
    y,
    inner,
    slots,
    B,
    tiles,
    out,
    count,
    y_stride,
    inner_stride,
    output_count,
    row_count,
    RANK: tl.constexpr,
    IS_ONE_TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
):
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    has_token = tokens < count
    own_slots = tl.load(slots + tokens, mask=has_token, other=0)
    tile = tl.program_id(1)
    layer, start, end = (
        tl.load(tiles + tile * 3),
        tl.load(tiles + tile * 3 + 1),
        tl.load(tiles + tile * 3 + 2),
    )
    outputs = start + tl.arange(0, OUTPUT_TILE)
    has_output = outputs < end
    has_both = has_token[:, None] & has_output[None, :]
    tokens = tokens.to(tl.int64)
    summed = tl.load(y + tokens[:, None] * y_stride + outputs[None, :], mask=has_both, other=0.0).to(
        tl.float32
    )
    inner += layer * row_count
    if IS_ONE_TILE:
        summed += _multiply_rows(
            inner, B, 0, own_slots, tokens, outputs, has_output, inner_stride, output_count, RANK, ROW_TILE
        )
    else:
        for first in range(0, row_count, ROW_TILE):
            rows = first + tl.arange(0, ROW_TILE)
            if tl.max(tl.max((own_slots[:, None] == rows[None, :] // RANK + 1).to(tl.int32), 1), 0) != 0:
                summed += _multiply_rows(
                    inner,
                    B,
                    first,
                    own_slots,
                    tokens,
                    outputs,
                    has_output,
                    inner_stride,
                    output_count,
                    RANK,
                    ROW_TILE,
                )
    place = out + tokens[:, None] * output_count + outputs[None, :]
    tl.store(place, summed.to(out.dtype.element_ty), mask=has_both)


@triton.jit
def _multiply_rows(
    inner,
    B,
    first,
    own_slots,
    tokens,
    outputs,
    has_output,
    inner_stride,
    output_count,
    RANK: tl.constexpr,
    ROW_TILE: tl.constexpr,
):
    """The product with the rows of B from `first` on. Rows of other slots than the tokens' are not read."""
    rows = first + tl.arange(0, ROW_TILE)
    own = own_slots[:, None] == rows[None, :] // RANK + 1
    is_used = tl.max(own.to(tl.int32), 0) > 0
    x_tile = tl.load(inner + tokens[:, None] * inner_stride + rows[None, :], mask=own, other=0.0)
    B_tile = tl.load(
        B + rows[:, None].to(tl.int64) * output_count + outputs[None, :],
        mask=is_used[:, None] & has_output[None, :],
        other=0.0,
    )
    return tl.dot(x_tile, B_tile, input_precision="ieee")
