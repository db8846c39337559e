"""LoRA of many adapters in one batch: each token goes through its own adapter's matrices, in two kernels.

Programs run over tokens and slots, and one whose tokens do not use its slot ends at once, so the work
follows what is used and not what is loaded. (S-LoRA, Sheng et al. 2023, and Punica, Chen et al. 2023, group
tokens too.) The first product needs the input alone, so it may run beside the base model's own.
Shape letters: N tokens, S slots, M linear layers with the same input, R rank, I inputs, O outputs of all M,
C columns (M times R), K parts of the inputs, T tiles of the outputs.
"""

import torch
import triton
import triton.language as tl

_ENOUGH_PROGRAMS = 128
_MAX_PARTS = 8
_INPUTS_PER_TILE = 128
_OUTPUTS_PER_TILE = 64
# Columns of all slots that are gone through at once; the rank divides it or is a multiple of it.
_COLUMNS_PER_TILE = 64


def output_tiles(widths: list[int]) -> list[tuple[int, int, int]]:
    """Tiles (layer, first output, end) of the outputs of several layers, side by side."""
    made, first = [], 0
    for layer, width in enumerate(widths):
        for start in range(0, width, _OUTPUTS_PER_TILE):
            made.append((layer, first + start, first + min(start + _OUTPUTS_PER_TILE, width)))
        first += width
    return made


def shrink(x_NI: torch.Tensor, slots_N: torch.Tensor, A_MSRI: torch.Tensor) -> torch.Tensor:
    """x times the first matrices of each token's adapter, in parts [K, N, C] whose sum is the product.

    Slot 0 is no adapter, and its tokens' columns hold anything; slot s has index s - 1.
    """
    layers, slots, rank, inputs = A_MSRI.shape
    count, columns = len(x_NI), layers * rank
    tokens = _tokens_per_tile(count)
    token_tiles = triton.cdiv(count, tokens)
    column_tile = 16 if columns <= 16 else 64
    column_tiles = triton.cdiv(columns, column_tile)
    programs = token_tiles * column_tiles * slots
    parts = max(1, min(_MAX_PARTS, _ENOUGH_PROGRAMS // programs, triton.cdiv(inputs, _INPUTS_PER_TILE)))
    part_size = triton.cdiv(triton.cdiv(inputs, parts), _INPUTS_PER_TILE) * _INPUTS_PER_TILE
    inner_KNC = torch.empty(parts, count, columns, dtype=torch.float32, device=x_NI.device)
    _shrink_kernel[(token_tiles, slots * column_tiles, parts)](
        x_NI,
        slots_N,
        A_MSRI,
        inner_KNC,
        count,
        x_NI.stride(0),
        part_size,
        inputs,
        columns,
        slots,
        column_tiles,
        RANK=rank,
        TOKENS=tokens,
        COLUMN_TILE=column_tile,
        INPUT_TILE=_INPUTS_PER_TILE,
        num_warps=4,
    )
    return inner_KNC


def expand(
    y_NO: torch.Tensor,
    inner_KNC: torch.Tensor,
    slots_N: torch.Tensor,
    B_SRO: torch.Tensor,
    tiles_T3: torch.Tensor,
) -> None:
    """Add to y what the second matrices make of `inner_KNC`. `tiles_T3` comes from `output_tiles`."""
    slots, rank, outputs = B_SRO.shape
    parts, count, columns = inner_KNC.shape
    tokens = _tokens_per_tile(count)
    _expand_kernel[(triton.cdiv(count, tokens), len(tiles_T3))](
        y_NO,
        slots_N,
        B_SRO,
        inner_KNC,
        tiles_T3,
        count,
        y_NO.stride(0),
        slots * rank,
        columns,
        outputs,
        parts,
        RANK=rank,
        TOKENS=tokens,
        COLUMN_TILE=_COLUMNS_PER_TILE,
        OUTPUT_TILE=_OUTPUTS_PER_TILE,
        num_warps=4,
    )


def _tokens_per_tile(count: int) -> int:
    # Few sizes: each is compiled on its own.
    return 16 if count <= 16 else 64


@triton.jit(do_not_specialize=["count", "slot_count", "column_tiles"])
def _shrink_kernel(
    x,
    slots,
    A,
    inner,
    count,
    x_stride,
    part_size,
    input_count,
    column_count,
    slot_count,
    column_tiles,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    INPUT_TILE: tl.constexpr,
):
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.program_id(1) // column_tiles
    part = tl.program_id(2)
    used = tl.load(slots + tokens, mask=tokens < count, other=0) == slot + 1
    if tl.max(used.to(tl.int32), 0) == 0:
        return
    columns = tl.program_id(1) % column_tiles * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    has_column = columns < column_count
    lines = (columns // RANK * slot_count + slot) * RANK + columns % RANK
    summed = tl.zeros([TOKENS, COLUMN_TILE], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, input_count), INPUT_TILE):
        inputs = first + tl.arange(0, INPUT_TILE)
        has_input = inputs < input_count
        x_tile = tl.load(
            x + tokens[:, None].to(tl.int64) * x_stride + inputs[None, :],
            mask=used[:, None] & has_input[None, :],
            other=0.0,
        )
        A_tile = tl.load(
            A + lines[:, None].to(tl.int64) * input_count + inputs[None, :],
            mask=has_column[:, None] & has_input[None, :],
            other=0.0,
        )
        summed += tl.dot(x_tile, tl.trans(A_tile), input_precision="ieee")
    place = inner + (part * count + tokens[:, None]).to(tl.int64) * column_count + columns[None, :]
    tl.store(place, summed, mask=used[:, None] & has_column[None, :])


@triton.jit(do_not_specialize=["count", "parts"])
def _expand_kernel(
    y,
    slots,
    B,
    inner,
    tiles,
    count,
    y_stride,
    line_count,
    column_count,
    output_count,
    parts,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    OUTPUT_TILE: tl.constexpr,
):
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    has_token = tokens < count
    own_slots = tl.load(slots + tokens, mask=has_token, other=0)
    if tl.max(own_slots, 0) == 0:
        return
    tile = tl.program_id(1)
    layer, start, end = (
        tl.load(tiles + tile * 3),
        tl.load(tiles + tile * 3 + 1),
        tl.load(tiles + tile * 3 + 2),
    )
    outputs = start + tl.arange(0, OUTPUT_TILE)
    has_output = outputs < end
    place = y + tokens[:, None].to(tl.int64) * y_stride + outputs[None, :]
    kept = has_token[:, None] & has_output[None, :]
    summed = tl.load(place, mask=kept, other=0.0).to(tl.float32)
    # The matrices of all slots lie one under the other: line `slot * RANK + rank` belongs to a slot.
    for first in range(0, line_count, COLUMN_TILE):
        lines = first + tl.arange(0, COLUMN_TILE)
        own = own_slots[:, None] == lines[None, :] // RANK + 1
        is_used = tl.max(own.to(tl.int32), 0) > 0
        if tl.max(is_used.to(tl.int32), 0) != 0:
            B_tile = tl.load(
                B + lines[:, None].to(tl.int64) * output_count + outputs[None, :],
                mask=is_used[:, None] & has_output[None, :],
                other=0.0,
            )
            x_tile = tl.zeros([TOKENS, COLUMN_TILE], tl.float32)
            read = tokens[:, None].to(tl.int64) * column_count + layer * RANK + lines[None, :] % RANK
            for part in range(parts):
                x_tile += tl.load(inner + part * count * column_count + read, mask=own, other=0.0)
            summed += tl.dot(x_tile.to(B_tile.dtype), B_tile, input_precision="ieee")
    tl.store(place, summed.to(y.dtype.element_ty), mask=kept)
