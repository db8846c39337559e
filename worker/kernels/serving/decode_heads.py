"""The heads of a decode step in one kernel: what adapters add to q, k and v, the norms of heads, rotation by
the position, and storing keys and values in the paged cache.

Shape letters: N tokens, O outputs of q, k and v side by side, H query heads, G key heads, D dimension of a
head, R rows, P blocks (of the cache, or of a row), S tokens of a block.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch, lora_tiles
from worker.kernels.pending_lora import PendingLora

_FEW_TOKENS = 16
# A program's tokens, if there are more than a few.
_TOKENS_PER_PROGRAM = 16


@dataclass(frozen=True)
class HeadNorms:
    """The weights [D] of the norms of query and key heads. `adds_one`: Gemma's kind."""

    query_D: torch.Tensor
    key_D: torch.Tensor
    epsilon: float
    adds_one: bool = False


@dataclass(frozen=True)
class CachePlaces:
    """A layer's cache, and the row and position of each token (int32 or int64)."""

    keys_PSGD: torch.Tensor
    values_PSGD: torch.Tensor
    block_tables_RP: torch.Tensor
    rows_N: torch.Tensor
    positions_N: torch.Tensor


def prepare(
    qkv_NO: torch.Tensor,
    update: PendingLora | None,
    angles: tuple[torch.Tensor, torch.Tensor],
    places: CachePlaces,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """Store keys and values, and return the queries [H, N, D], a view of [N, H, D].

    `angles`: cosines and sines [N, D]. Rows of `qkv_NO` may be strided. `update`: for at most
    `lora_tiles.MAX_TOKENS` tokens.
    """
    count = len(qkv_NO)
    key_heads, dimension = places.keys_PSGD.shape[2:]
    heads = qkv_NO.shape[1] // dimension - 2 * key_heads
    query_NHD = qkv_NO.new_empty(count, heads, dimension)
    # With adapters a program has one token, at most lora_tiles.MAX_TOKENS of them.
    tokens, warps = (1, 1) if count <= _FEW_TOKENS or update is not None else (_TOKENS_PER_PROGRAM, 2)
    _prepare_kernel[(heads + 2 * key_heads, triton.cdiv(count, tokens))](
        qkv_NO,
        *lora_tiles.arguments(update, qkv_NO),
        *angles,
        norms.query_D if norms else qkv_NO,
        norms.key_D if norms else qkv_NO,
        query_NHD,
        places.keys_PSGD,
        places.values_PSGD,
        places.block_tables_RP,
        places.rows_N,
        places.positions_N,
        count,
        qkv_NO.stride(0),
        places.block_tables_RP.stride(0),
        norms.epsilon if norms else 0.0,
        HEADS=heads,
        KEY_HEADS=key_heads,
        HALF=dimension // 2,
        BLOCK=triton.next_power_of_2(dimension // 2),
        BLOCK_TOKENS=places.keys_PSGD.shape[1],
        HAS_NORMS=norms is not None,
        ADDS_ONE=norms is not None and norms.adds_one,
        TOKENS=tokens,
        **lora_tiles.constants(update),
        num_warps=warps,
        **dependent_launch.options(qkv_NO),
    )
    return query_NHD.transpose(0, 1)


@triton.jit(do_not_specialize=["count"])
def _prepare_kernel(
    qkv,
    inner,
    slots,
    B,
    inner_stride,
    output_count,
    cosine,
    sine,
    query_norm,
    key_norm,
    query,
    keys,
    values,
    block_tables,
    rows,
    positions,
    count,
    qkv_stride,
    block_table_stride,
    epsilon,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    ADDS_ONE: tl.constexpr,
    RANK: tl.constexpr,
    LAYERS: tl.constexpr,
    TOKENS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """A program computes one head of some tokens, in two halves, which the rotation mixes."""
    dependent_launch.launch_next(IS_DEPENDENT)
    head = tl.program_id(0)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    has_token = tokens < count
    each = tl.arange(0, BLOCK)
    is_query, is_value = head < HEADS, head >= HEADS + KEY_HEADS
    layer = 0
    if LAYERS > 1:
        layer = (head >= HEADS).to(tl.int32) + is_value.to(tl.int32)
    columns = head * 2 * HALF + each
    if RANK > 0:
        token, is_column = tl.program_id(1), each < HALF
        slot, low_tile = lora_tiles.read(slots, B, output_count, token, columns, is_column, RANK)
        _slot, high_tile = lora_tiles.read(slots, B, output_count, token, columns + HALF, is_column, RANK)
    dependent_launch.wait(IS_DEPENDENT)
    inside = has_token[:, None] & (each < HALF)[None, :]
    at = qkv + tokens[:, None].to(tl.int64) * qkv_stride + columns[None, :]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        low += lora_tiles.update(
            inner,
            slot,
            low_tile,
            B,
            inner_stride,
            output_count,
            token,
            layer,
            columns,
            is_column,
            RANK,
            LAYERS,
        )[None, :]
        high += lora_tiles.update(
            inner,
            slot,
            high_tile,
            B,
            inner_stride,
            output_count,
            token,
            layer,
            columns + HALF,
            is_column,
            RANK,
            LAYERS,
        )[None, :]
    low = low.to(query.dtype.element_ty).to(tl.float32)
    high = high.to(query.dtype.element_ty).to(tl.float32)
    if not is_value:
        if HAS_NORMS:
            squares = tl.sum(low * low, 1) + tl.sum(high * high, 1)
            scale = tl.rsqrt(squares / (2 * HALF) + epsilon)[:, None]
            weight = key_norm
            if is_query:
                weight = query_norm
            low = _normed(low, scale, weight, each, HALF, ADDS_ONE, query.dtype.element_ty)
            high = _normed(high, scale, weight + HALF, each, HALF, ADDS_ONE, query.dtype.element_ty)
        angles = tokens[:, None].to(tl.int64) * 2 * HALF + each[None, :]
        cosine_low = tl.load(cosine + angles, mask=inside, other=0.0).to(tl.float32)
        cosine_high = tl.load(cosine + angles + HALF, mask=inside, other=0.0).to(tl.float32)
        sine_low = tl.load(sine + angles, mask=inside, other=0.0).to(tl.float32)
        sine_high = tl.load(sine + angles + HALF, mask=inside, other=0.0).to(tl.float32)
        new_low = low * cosine_low - high * sine_low
        high = high * cosine_high + low * sine_high
        low = new_low
    low, high = low.to(query.dtype.element_ty), high.to(query.dtype.element_ty)
    if is_query:
        at_head = query + (tokens[:, None].to(tl.int64) * HEADS + head) * 2 * HALF + each[None, :]
    else:
        position = tl.load(positions + tokens, mask=has_token, other=0)
        row = tl.load(rows + tokens, mask=has_token, other=0)
        at_block = block_tables + row * block_table_stride + position // BLOCK_TOKENS
        block = tl.load(at_block, mask=has_token, other=0).to(tl.int64)
        place = (block * BLOCK_TOKENS + position % BLOCK_TOKENS)[:, None] * KEY_HEADS + head - HEADS
        if is_value:
            at_head = values + (place - KEY_HEADS) * 2 * HALF + each[None, :]
        else:
            at_head = keys + place * 2 * HALF + each[None, :]
    tl.store(at_head, low, mask=inside)
    tl.store(at_head + HALF, high, mask=inside)


@triton.jit
def _normed(value, scale, weight, each, HALF: tl.constexpr, ADDS_ONE: tl.constexpr, dtype: tl.constexpr):
    factor = tl.load(weight + each, mask=each < HALF, other=0.0).to(tl.float32)[None, :]
    value = value * scale
    if ADDS_ONE:
        factor += 1.0
    else:
        value = value.to(dtype).to(tl.float32)
    return (value * factor).to(dtype).to(tl.float32)
