"""Attention of chunks of prompts over a paged KV cache.

Online softmax as in FlashAttention (Dao et al. 2022), with powers of two. Sums are in float32. Keys that all
queries of a tile attend to are read without masks.
Shape letters: N tokens of the step, R rows, P blocks (of the cache, or of a row in a block table), S tokens
of a block, H query heads, G key heads, D head dimension, M tiles of at most 64 query tokens.
"""

import torch
import triton
import triton.language as tl

from worker.kernels.serving.paged_attention import KEYS_PER_TILE, AttentionSettings

_QUERIES_PER_TILE = 64
_LOG2_E = tl.constexpr(1.4426950408889634)


def attend(
    query_HND: torch.Tensor,
    keys_PSGD: torch.Tensor,
    values_PSGD: torch.Tensor,
    block_tables_RP: torch.Tensor,
    tiles_M4: torch.Tensor,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Attention of prompt chunks whose keys are stored. Returns [N, H, D]. `tiles_M4` comes from `tiles`."""
    heads, count, dimension = query_HND.shape
    key_heads = keys_PSGD.shape[2]
    out_NHD = query_HND.new_zeros(count, heads, dimension)
    _prefill_kernel[(len(tiles_M4), heads)](
        query_HND,
        keys_PSGD,
        values_PSGD,
        block_tables_RP,
        tiles_M4,
        out_NHD,
        query_HND.stride(0),
        query_HND.stride(1),
        block_tables_RP.stride(0),
        settings.scale,
        BLOCK_TOKENS=keys_PSGD.shape[1],
        HEADS=heads,
        KEY_HEADS=key_heads,
        DIMENSION=dimension,
        DIMENSION_BLOCK=max(16, triton.next_power_of_2(dimension)),
        QUERIES=_QUERIES_PER_TILE,
        TILE=KEYS_PER_TILE,
        WINDOW=settings.window,
        SOFTCAP=settings.softcap,
        num_warps=4,
        num_stages=2,
    )
    return out_NHD


def tiles(chunks: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Cut chunks (row, first position, token count), consecutive in N, into tiles.

    Returns tiles (row, index of the first token in N, position of that token, token count).
    """
    cut, first = [], 0
    for row, position, count in chunks:
        for start in range(0, count, _QUERIES_PER_TILE):
            cut.append((row, first + start, position + start, min(_QUERIES_PER_TILE, count - start)))
        first += count
    return cut


@triton.jit
def _prefill_kernel(
    query,
    keys,
    values,
    block_tables,
    tiles,
    out,
    query_head_stride,
    query_token_stride,
    block_table_stride,
    scale,
    BLOCK_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    # Later tiles of a prompt have more keys; they begin first, so that the others fill what is left.
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    key_head = head // (HEADS // KEY_HEADS)
    row, token = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    position, count = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    if count == 0:
        return

    queries = tl.arange(0, QUERIES)
    items = tl.arange(0, DIMENSION_BLOCK)
    has_output = (queries < count)[:, None] & (items < DIMENSION)[None, :]
    q = tl.load(
        query + head * query_head_stride + (token + queries)[:, None] * query_token_stride + items[None, :],
        mask=has_output,
        other=0.0,
    )
    peak = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    weighted = tl.zeros([QUERIES, DIMENSION_BLOCK], tl.float32)
    table = block_tables + row * block_table_stride
    # Keys before `whole` are attended to by all queries. A window may hide any of them.
    first, whole = 0, (position + 1) // TILE * TILE
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // TILE * TILE
        whole = first
    for begin in range(first, whole, TILE):
        each = begin + tl.arange(0, TILE)
        block = tl.load(table + each // BLOCK_TOKENS).to(tl.int64)
        places = ((block * BLOCK_TOKENS + each % BLOCK_TOKENS) * KEY_HEADS + key_head) * DIMENSION
        if DIMENSION == DIMENSION_BLOCK:
            k = tl.load(keys + places[:, None] + items[None, :])
            v = tl.load(values + places[:, None] + items[None, :])
        else:
            here = (items < DIMENSION)[None, :]
            k = tl.load(keys + places[:, None] + items[None, :], mask=here, other=0.0)
            v = tl.load(values + places[:, None] + items[None, :], mask=here, other=0.0)
        scores = _scores(q, k, scale, SOFTCAP)
        peak, total, weighted = _add(peak, total, weighted, scores, v)
    # A query beyond the chunk attends to position 0, so that its sum is not zero.
    own = tl.where(queries < count, position + queries, 0)[:, None]
    for begin in range(whole, position + count, TILE):
        each = begin + tl.arange(0, TILE)
        inside = each < position + count
        block = tl.load(table + each // BLOCK_TOKENS, mask=inside, other=0).to(tl.int64)
        places = ((block * BLOCK_TOKENS + each % BLOCK_TOKENS) * KEY_HEADS + key_head) * DIMENSION
        here = inside[:, None] & (items < DIMENSION)[None, :]
        k = tl.load(keys + places[:, None] + items[None, :], mask=here, other=0.0)
        v = tl.load(values + places[:, None] + items[None, :], mask=here, other=0.0)
        visible = each[None, :] <= own
        if WINDOW > 0:
            visible = visible & (each[None, :] > own - WINDOW)
        scores = tl.where(visible, _scores(q, k, scale, SOFTCAP), -float("inf"))
        peak, total, weighted = _add(peak, total, weighted, scores, v)
    total = tl.where(total > 0, total, 1.0)
    place = ((token + queries)[:, None] * HEADS + head) * DIMENSION + items[None, :]
    tl.store(out + place, (weighted / total[:, None]).to(out.dtype.element_ty), mask=has_output)


@triton.jit
def _scores(q, k, scale, SOFTCAP: tl.constexpr):
    """The logarithms to base 2 of the weights, before they are normalized."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if SOFTCAP > 0:
        return SOFTCAP * (2 * tl.sigmoid(2 * (scores * scale) / SOFTCAP) - 1) * _LOG2_E
    return scores * (scale * _LOG2_E)


@triton.jit
def _add(peak, total, weighted, scores, v):
    """The largest score, the sum of the weights and that of the weighted values, with those of some keys."""
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # A window may hide a whole tile from a query: then there is no maximum to subtract yet.
    base = tl.where(new_peak == -float("inf"), 0.0, new_peak)
    shrink = tl.exp2(peak - base)
    weights = tl.exp2(scores - base[:, None])
    total = total * shrink + tl.sum(weights, 1)
    weighted = tl.dot(weights.to(v.dtype), v, weighted * shrink[:, None], input_precision="ieee")
    return new_peak, total, weighted
