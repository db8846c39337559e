"""Attention over a paged KV cache: storing keys and values, and decoding a token per row.

Online softmax as in FlashAttention (Dao et al. 2022); a row's keys are split over several programs when rows
and heads alone are too few for the device (Flash-Decoding, Dao et al. 2023). Sums are in float32.
Shape letters: N tokens of the step, R rows, P blocks (of the cache, or of a row in a block table), S tokens
of a block, H query heads, G key heads, D head dimension, X splits.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from worker.kernels import dependent_launch

KEYS_PER_TILE = 64
_MAX_SPLITS = 32
# Number of programs that occupies a large GPU.
_ENOUGH_PROGRAMS = 512
# Key heads of all rows.
_FEW_HEADS, _MANY_HEADS = 64, 1024


@dataclass(frozen=True)
class AttentionSettings:
    """The scale of a layer's scores, its sliding window in tokens and its soft cap; 0 means none."""

    scale: float
    window: int = 0
    softcap: float = 0.0


def store(
    key_GND: torch.Tensor,
    value_GND: torch.Tensor,
    keys_PSGD: torch.Tensor,
    values_PSGD: torch.Tensor,
    block_tables_RP: torch.Tensor,
    rows_N: torch.Tensor,
    positions_N: torch.Tensor,
) -> None:
    """Write the key and value of each token to the block of its row and position (int32 or int64)."""
    heads, count, dimension = key_GND.shape
    _store_kernel[(count,)](
        key_GND,
        value_GND,
        keys_PSGD,
        values_PSGD,
        block_tables_RP,
        rows_N,
        positions_N,
        key_GND.stride(0),
        key_GND.stride(1),
        value_GND.stride(0),
        value_GND.stride(1),
        block_tables_RP.stride(0),
        BLOCK_TOKENS=keys_PSGD.shape[1],
        DIMENSION=dimension,
        WIDTH=heads * dimension,
        WIDTH_BLOCK=triton.next_power_of_2(heads * dimension),
    )


def decode(
    query_HND: torch.Tensor,
    keys_PSGD: torch.Tensor,
    values_PSGD: torch.Tensor,
    block_tables_RP: torch.Tensor,
    positions_N: torch.Tensor,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Attention of one token in each of the rows 0 to N-1, over keys up to its own. Returns [N, H, D]."""
    heads, count, dimension = query_HND.shape
    key_heads = keys_PSGD.shape[2]
    group = heads // key_heads
    enough, tile, warps = _cut(count * key_heads, group)
    splits = max(1, min(_MAX_SPLITS, enough // (count * key_heads)))
    out_NHD = query_HND.new_empty(count, heads, dimension)
    sums_NHXD, peaks_NHX2 = out_NHD, out_NHD
    if splits > 1:
        sums_NHXD = torch.empty(count, heads, splits, dimension, dtype=torch.float32, device=out_NHD.device)
        peaks_NHX2 = torch.empty(count, heads, splits, 2, dtype=torch.float32, device=out_NHD.device)
    # Neighbouring heads run at the same time: they read neighbouring memory.
    _decode_kernel[(key_heads, count, splits)](
        query_HND,
        keys_PSGD,
        values_PSGD,
        block_tables_RP,
        positions_N,
        out_NHD,
        sums_NHXD,
        peaks_NHX2,
        _counters(out_NHD.device, 2 * _ENOUGH_PROGRAMS),
        query_HND.stride(0),
        query_HND.stride(1),
        block_tables_RP.stride(0),
        settings.scale,
        splits,
        BLOCK_TOKENS=keys_PSGD.shape[1],
        KEY_HEADS=key_heads,
        GROUP=group,
        GROUP_BLOCK=1 if group == 1 else max(16, triton.next_power_of_2(group)),
        DIMENSION=dimension,
        DIMENSION_BLOCK=max(16, triton.next_power_of_2(dimension)),
        TILE=tile,
        IS_SPLIT=splits > 1,
        MAX_SPLITS=_MAX_SPLITS,
        WINDOW=settings.window,
        SOFTCAP=settings.softcap,
        num_warps=warps,
        num_stages=2,
        **dependent_launch.options(query_HND),
    )
    if splits > 1 and group > 1:
        _merge_kernel[(count, heads)](
            sums_NHXD,
            peaks_NHX2,
            out_NHD,
            splits,
            HEADS=heads,
            DIMENSION=dimension,
            DIMENSION_BLOCK=max(16, triton.next_power_of_2(dimension)),
            MAX_SPLITS=_MAX_SPLITS,
            **dependent_launch.options(query_HND),
        )
    return out_NHD


def _cut(heads: int, group: int) -> tuple[int, int, int]:
    """How many programs are enough, the keys of a tile and warps for so many key heads of all rows.

    Those for ungrouped heads were the fastest on an H200 at 300 keys.
    """
    if group > 1:
        return _ENOUGH_PROGRAMS, KEYS_PER_TILE, 4
    if heads <= _FEW_HEADS:
        return _ENOUGH_PROGRAMS, 32, 2
    if heads <= _MANY_HEADS:
        return 2 * _ENOUGH_PROGRAMS, 32, 1
    return _ENOUGH_PROGRAMS, KEYS_PER_TILE, 2


@cache
def _counters(device: torch.device, count: int) -> torch.Tensor:
    """How many splits of a row's head have ended. Zeros before and after each launch, so all share them."""
    return torch.zeros(count, dtype=torch.int32, device=device)


@triton.jit
def _store_kernel(
    key,
    value,
    keys,
    values,
    block_tables,
    rows,
    positions,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    block_table_stride,
    BLOCK_TOKENS: tl.constexpr,
    DIMENSION: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    position = tl.load(positions + token)
    block = tl.load(block_tables + tl.load(rows + token) * block_table_stride + position // BLOCK_TOKENS).to(
        tl.int64
    )
    place = (block * BLOCK_TOKENS + position % BLOCK_TOKENS) * WIDTH
    each = tl.arange(0, WIDTH_BLOCK)
    head, item = each // DIMENSION, each % DIMENSION
    inside = each < WIDTH
    new_key = tl.load(key + head * key_head_stride + token * key_token_stride + item, mask=inside)
    new_value = tl.load(value + head * value_head_stride + token * value_token_stride + item, mask=inside)
    tl.store(keys + place + each, new_key, mask=inside)
    tl.store(values + place + each, new_value, mask=inside)


@triton.jit(do_not_specialize=["splits"])
def _decode_kernel(
    query,
    keys,
    values,
    block_tables,
    positions,
    out,
    sums,
    peaks,
    counters,
    query_head_stride,
    query_token_stride,
    block_table_stride,
    scale,
    splits,
    BLOCK_TOKENS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.launch_next(IS_DEPENDENT)
    key_head, row, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + row).to(tl.int32) + 1
    seen = 0
    if WINDOW > 0:
        seen = tl.maximum(length - WINDOW, 0)
    share = tl.cdiv(tl.cdiv(length - seen, splits), TILE) * TILE
    start = seen + split * share
    end = tl.minimum(start + share, length)

    items = tl.arange(0, DIMENSION_BLOCK)
    has_item = items < DIMENSION
    members = tl.arange(0, GROUP_BLOCK)
    heads = key_head * GROUP + members
    is_member = members < GROUP
    dependent_launch.wait(IS_DEPENDENT)
    q = tl.load(
        query + heads[:, None] * query_head_stride + row * query_token_stride + items[None, :],
        mask=is_member[:, None] & has_item[None, :],
        other=0.0,
    )
    peak = tl.full([GROUP_BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    weighted = tl.zeros([GROUP_BLOCK, DIMENSION_BLOCK], tl.float32)
    for first in range(start, end, TILE):
        each = first + tl.arange(0, TILE)
        inside = each < end
        block = tl.load(
            block_tables + row * block_table_stride + each // BLOCK_TOKENS, mask=inside, other=0
        ).to(tl.int64)
        place = ((block * BLOCK_TOKENS + each % BLOCK_TOKENS) * KEY_HEADS + key_head) * DIMENSION
        here = inside[:, None] & has_item[None, :]
        k = tl.load(keys + place[:, None] + items[None, :], mask=here, other=0.0)
        v = tl.load(values + place[:, None] + items[None, :], mask=here, other=0.0)
        if GROUP == 1:
            scores = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[None, :] * scale
        else:
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP > 0:
            scores = SOFTCAP * (2 * tl.sigmoid(2 * scores / SOFTCAP) - 1)
        scores = tl.where(inside[None, :], scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp(peak - new_peak)
        weights = tl.exp(scores - new_peak[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if GROUP == 1:
            added = tl.sum(tl.trans(weights) * v.to(tl.float32), 0)[None, :]
        else:
            added = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        weighted = weighted * shrink[:, None] + added
        peak = new_peak
    has_output = is_member[:, None] & has_item[None, :]
    if not IS_SPLIT:
        place = (row * KEY_HEADS * GROUP + heads[:, None]) * DIMENSION + items[None, :]
        tl.store(out + place, (weighted / total[:, None]).to(out.dtype.element_ty), mask=has_output)
    else:
        part = (row * KEY_HEADS * GROUP + heads) * splits + split
        tl.store(sums + part[:, None] * DIMENSION + items[None, :], weighted, mask=has_output)
        tl.store(peaks + part * 2, peak, mask=is_member)
        tl.store(peaks + part * 2 + 1, total, mask=is_member)
        if GROUP == 1:
            # The program that ends last merges. All its threads have stored before it counts itself.
            tl.debug_barrier()
            place = row * KEY_HEADS + key_head
            if tl.atomic_add(counters + place, 1, sem="acq_rel") == splits - 1:
                tl.debug_barrier()
                _merge(sums, peaks, out, place, splits, DIMENSION, DIMENSION_BLOCK, MAX_SPLITS)
                tl.store(counters + place, 0)


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    sums,
    peaks,
    out,
    splits,
    HEADS: tl.constexpr,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dependent_launch.begin(IS_DEPENDENT)
    place = tl.program_id(0) * HEADS + tl.program_id(1)
    _merge(sums, peaks, out, place, splits, DIMENSION, DIMENSION_BLOCK, MAX_SPLITS)


@triton.jit
def _merge(
    sums,
    peaks,
    out,
    place,
    splits,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Merge the splits of a row's head, read past the L1 cache, which does not see other programs' writes."""
    split = tl.arange(0, MAX_SPLITS)
    items = tl.arange(0, DIMENSION_BLOCK)
    inside, has_item = split < splits, items < DIMENSION
    part = place * splits + split
    peak = tl.load(peaks + part * 2, mask=inside, other=-float("inf"), cache_modifier=".cg")
    total = tl.load(peaks + part * 2 + 1, mask=inside, other=0.0, cache_modifier=".cg")
    share = tl.exp(peak - tl.max(peak, 0))
    here = inside[:, None] & has_item[None, :]
    at = sums + part[:, None] * DIMENSION + items[None, :]
    weighted = tl.load(at, mask=here, other=0.0, cache_modifier=".cg")
    merged = tl.sum(weighted * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(out + place * DIMENSION + items, merged.to(out.dtype.element_ty), mask=has_item)
