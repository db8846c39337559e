"""LoRA of many adapters in one batch: each token goes through its own adapter's matrices, in two kernels.

Programs run over tokens and slots, and one whose tokens do not use its slot ends at once, so the work
follows what is used and not what is loaded. (S-LoRA, Sheng et al. 2023, and Punica, Chen et al. 2023, group
tokens too.)
Shape letters: N tokens, S slots, M linear layers with the same input, R rank, I inputs, O outputs of all M,
K parts of the inputs, T tiles of the outputs.
"""

import torch
import triton
import triton.language as tl

_ENOUGH_PROGRAMS = 256
_MAX_PARTS = 16
_INPUTS_PER_TILE = 128
OUTPUTS_PER_TILE = 128


def output_tiles(widths: list[int]) -> list[tuple[int, int, int]]:
    """Tiles (layer, first output, end) of the outputs of several layers, side by side."""
    made, first = [], 0
    for layer, width in enumerate(widths):
        for start in range(0, width, OUTPUTS_PER_TILE):
            made.append((layer, first + start, first + min(start + OUTPUTS_PER_TILE, width)))
        first += width
    return made


def add(
    y_NO: torch.Tensor,
    x_NI: torch.Tensor,
    slots_N: torch.Tensor,
    A_MSRI: torch.Tensor,
    B_SRO: torch.Tensor,
    tiles_T3: torch.Tensor,
) -> None:
    """Add to y what each token's adapter makes of x. Slot 0 is no adapter; slot s has index s - 1."""
    layers, slots, rank, inputs = A_MSRI.shape
    count, columns = len(x_NI), layers * rank
    tokens = 16 if count <= 16 else 32 if count <= 32 else 64
    token_tiles = triton.cdiv(count, tokens)
    column_tile = min(64, triton.next_power_of_2(columns))
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
        SLOTS=slots,
        RANK=rank,
        INPUTS=inputs,
        COLUMNS=columns,
        TOKENS=tokens,
        COLUMN_TILE=column_tile,
        COLUMN_TILES=column_tiles,
        INPUT_TILE=_INPUTS_PER_TILE,
        num_warps=4,
    )
    _expand_kernel[(token_tiles, len(tiles_T3))](
        y_NO,
        slots_N,
        B_SRO,
        inner_KNC,
        tiles_T3,
        count,
        y_NO.stride(0),
        SLOTS=slots,
        RANK=rank,
        COLUMNS=columns,
        OUTPUTS=B_SRO.shape[2],
        PARTS=parts,
        TOKENS=tokens,
        RANK_TILE=min(64, rank),
        OUTPUT_TILE=OUTPUTS_PER_TILE,
        num_warps=4,
    )


@triton.jit
def _shrink_kernel(
    x,
    slots,
    A,
    inner,
    count,
    x_stride,
    part_size,
    SLOTS: tl.constexpr,
    RANK: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    INPUT_TILE: tl.constexpr,
):
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.program_id(1) // COLUMN_TILES
    part = tl.program_id(2)
    used = tl.load(slots + tokens, mask=tokens < count, other=0) == slot + 1
    if tl.max(used.to(tl.int32), 0) == 0:
        return
    columns = tl.program_id(1) % COLUMN_TILES * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    has_column = columns < COLUMNS
    lines = (columns // RANK * SLOTS + slot) * RANK + columns % RANK
    summed = tl.zeros([TOKENS, COLUMN_TILE], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, INPUTS), INPUT_TILE):
        inputs = first + tl.arange(0, INPUT_TILE)
        has_input = inputs < INPUTS
        x_tile = tl.load(
            x + tokens[:, None].to(tl.int64) * x_stride + inputs[None, :],
            mask=used[:, None] & has_input[None, :],
            other=0.0,
        )
        A_tile = tl.load(
            A + lines[:, None].to(tl.int64) * INPUTS + inputs[None, :],
            mask=has_column[:, None] & has_input[None, :],
            other=0.0,
        )
        summed += tl.dot(x_tile, tl.trans(A_tile), input_precision="ieee")
    place = inner + (part * count + tokens[:, None]).to(tl.int64) * COLUMNS + columns[None, :]
    tl.store(place, summed, mask=used[:, None] & has_column[None, :])


@triton.jit
def _expand_kernel(
    y,
    slots,
    B,
    inner,
    tiles,
    count,
    y_stride,
    SLOTS: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK_TILE: tl.constexpr,
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
    for slot in range(SLOTS):
        used = own_slots == slot + 1
        if tl.max(used.to(tl.int32), 0) != 0:
            for first in range(0, RANK, RANK_TILE):
                ranks = first + tl.arange(0, RANK_TILE)
                has_rank = ranks < RANK
                x_tile = tl.zeros([TOKENS, RANK_TILE], tl.float32)
                for part in range(PARTS):
                    read = (
                        (part * count + tokens[:, None]).to(tl.int64) * COLUMNS
                        + layer * RANK
                        + ranks[None, :]
                    )
                    x_tile += tl.load(inner + read, mask=used[:, None] & has_rank[None, :], other=0.0)
                B_tile = tl.load(
                    B + (slot * RANK + ranks[:, None]).to(tl.int64) * OUTPUTS + outputs[None, :],
                    mask=has_rank[:, None] & has_output[None, :],
                    other=0.0,
                )
                summed += tl.dot(x_tile.to(B_tile.dtype), B_tile, input_precision="ieee")
    tl.store(place, summed.to(y.dtype.element_ty), mask=kept)
