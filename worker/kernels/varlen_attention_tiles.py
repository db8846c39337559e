"""Triton kernels of causal varlen attention, within rows that are concatenated without padding.

Made for many short rows: each row is cut into tiles of its own, so no program is without work; no gradient is
added up in memory by several programs, so results are reproducible; query heads may share key heads. Online
softmax and recomputation in the backward pass follow FlashAttention-2 (Dao 2023); dK and dV are computed
apart from dQ, as in Triton's tutorial of it. Sums are in float32, logarithms to base 2.

One program computes one tile of a row and one head, as a table of tiles says. Strides are those of tokens and
heads; the stride of the last dimension is 1.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "tile_count"])
def tile_kernel(starts, tiles, rows, tile_count, OWN: tl.constexpr, BLOCK: tl.constexpr):
    """Write the table of tiles, one program for each row. Grid: (rows)."""
    row = tl.program_id(0)
    before = row * 0
    for first in range(0, row, BLOCK):
        other = first + tl.arange(0, BLOCK)
        begins = tl.load(starts + other, mask=other < row, other=0)
        ends = tl.load(starts + other + 1, mask=other < row, other=0)
        before += tl.sum((ends - begins + OWN - 1) // OWN, 0)
    begin = tl.load(starts + row)
    length = tl.load(starts + row + 1) - begin
    own_count = (length + OWN - 1) // OWN
    # The last row writes the entries that are left over, with a length of 0.
    count = tl.where(row == rows - 1, tile_count - before, own_count)
    for first in range(0, count, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        at = 3 * (before + tile)
        is_here = tile < count
        tl.store(tiles + at, tile * 0 + begin, mask=is_here)
        tl.store(tiles + at + 1, tl.where(tile < own_count, length, 0), mask=is_here)
        tl.store(tiles + at + 2, tile * OWN, mask=is_here)


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    queries,
    keys,
    values,
    outputs,
    logs,
    tiles,
    log2_scale,
    tokens,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """The output of one tile of queries of one head. Grid: (heads, tiles)."""
    head = tl.program_id(0)
    begin, length, first = _read_tile(tiles, tl.program_id(1))
    if first >= length:
        return
    own = first + tl.arange(0, OWN)
    is_own = own < length
    columns = tl.arange(0, DIMENSION_BLOCK)
    is_column = columns < DIMENSION
    query_at = (begin + own).to(tl.int64)[:, None] * query_token_stride + head * query_head_stride + columns
    query = tl.load(queries + query_at, mask=is_own[:, None] & is_column, other=0.0)
    keys += begin.to(tl.int64) * key_token_stride + (head // GROUP) * key_head_stride
    values += begin.to(tl.int64) * value_token_stride + (head // GROUP) * value_head_stride

    peak = tl.full((OWN,), float("-inf"), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    output = tl.zeros((OWN, DIMENSION_BLOCK), tl.float32)
    seen, whole_end = _key_range(first, WINDOW, OTHERS)
    for is_edge in tl.static_range(2):
        begin_others = whole_end if is_edge else seen
        end_others = tl.minimum(length, first + OWN) if is_edge else whole_end
        for other_first in range(begin_others, end_others, OTHERS):
            other = other_first + tl.arange(0, OTHERS)
            is_other = (other < length)[:, None] & is_column
            key = tl.load(keys + other[:, None] * key_token_stride + columns, mask=is_other, other=0.0)
            value = tl.load(values + other[:, None] * value_token_stride + columns, mask=is_other, other=0.0)
            score = tl.dot(query, key.trans()) * log2_scale
            if is_edge:
                score = tl.where(_attends(own[:, None], other, length, WINDOW), score, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(score, 1))
            safe_peak = new_peak
            if WINDOW > 0:
                # A query that attends to nothing in these keys has no peak.
                safe_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weight = tl.exp2(score - safe_peak[:, None])
            shrink = tl.exp2(peak - safe_peak)
            total = total * shrink + tl.sum(weight, 1)
            output = tl.dot(weight.to(value.dtype), value, output * shrink[:, None])
            peak = new_peak
    # Places behind the end of the row have a total of 0.
    total = tl.where(is_own, total, 1.0)
    output_at = ((begin + own).to(tl.int64)[:, None] * HEADS + head) * DIMENSION + columns
    tl.store(outputs + output_at, output / total[:, None], mask=is_own[:, None] & is_column)
    tl.store(logs + head.to(tl.int64) * tokens + begin + own, peak + tl.log2(total), mask=is_own)


@triton.jit(do_not_specialize=["tokens"])
def grad_queries_kernel(
    queries,
    keys,
    values,
    outputs,
    grads,
    logs,
    means,
    grad_queries,
    tiles,
    scale,
    log2_scale,
    tokens,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    grad_token_stride,
    grad_head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """The gradient of one tile of queries of one head. Grid: (heads, tiles).

    Writes to `means` each query's mean gradient of its weights: its output times the output's gradient.
    """
    head = tl.program_id(0)
    begin, length, first = _read_tile(tiles, tl.program_id(1))
    if first >= length:
        return
    own = first + tl.arange(0, OWN)
    is_own = own < length
    columns = tl.arange(0, DIMENSION_BLOCK)
    is_column = columns < DIMENSION
    is_loaded = is_own[:, None] & is_column
    token = (begin + own).to(tl.int64)
    query_at = token[:, None] * query_token_stride + head * query_head_stride + columns
    grad_at = token[:, None] * grad_token_stride + head * grad_head_stride + columns
    output_at = (token[:, None] * HEADS + head) * DIMENSION + columns
    query = tl.load(queries + query_at, mask=is_loaded, other=0.0)
    grad = tl.load(grads + grad_at, mask=is_loaded, other=0.0)
    output = tl.load(outputs + output_at, mask=is_loaded, other=0.0)
    mean = tl.sum(output.to(tl.float32) * grad.to(tl.float32), 1)
    number_at = head.to(tl.int64) * tokens + token
    tl.store(means + number_at, mean, mask=is_own)
    log = tl.load(logs + number_at, mask=is_own, other=0.0)
    keys += begin.to(tl.int64) * key_token_stride + (head // GROUP) * key_head_stride
    values += begin.to(tl.int64) * value_token_stride + (head // GROUP) * value_head_stride

    grad_query = tl.zeros((OWN, DIMENSION_BLOCK), tl.float32)
    seen, whole_end = _key_range(first, WINDOW, OTHERS)
    for is_edge in tl.static_range(2):
        begin_others = whole_end if is_edge else seen
        end_others = tl.minimum(length, first + OWN) if is_edge else whole_end
        for other_first in range(begin_others, end_others, OTHERS):
            other = other_first + tl.arange(0, OTHERS)
            is_other = (other < length)[:, None] & is_column
            key = tl.load(keys + other[:, None] * key_token_stride + columns, mask=is_other, other=0.0)
            value = tl.load(values + other[:, None] * value_token_stride + columns, mask=is_other, other=0.0)
            score = tl.dot(query, key.trans()) * log2_scale
            weight = tl.exp2(score - log[:, None])
            if is_edge:
                weight = tl.where(_attends(own[:, None], other, length, WINDOW), weight, 0.0)
            grad_score = weight * (tl.dot(grad, value.trans()) - mean[:, None])
            grad_query = tl.dot(grad_score.to(key.dtype), key, grad_query)
    tl.store(grad_queries + output_at, grad_query * scale, mask=is_loaded)


@triton.jit(do_not_specialize=["tokens"])
def grad_keys_kernel(
    queries,
    keys,
    values,
    grads,
    logs,
    means,
    grad_keys,
    grad_values,
    tiles,
    scale,
    log2_scale,
    tokens,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    grad_token_stride,
    grad_head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIMENSION: tl.constexpr,
    DIMENSION_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """The gradients of a tile of keys and values, from all heads that read them. Grid: (key heads, tiles)."""
    key_head = tl.program_id(0)
    begin, length, first = _read_tile(tiles, tl.program_id(1))
    if first >= length:
        return
    own = first + tl.arange(0, OWN)
    columns = tl.arange(0, DIMENSION_BLOCK)
    is_column = columns < DIMENSION
    is_loaded = (own < length)[:, None] & is_column
    token = (begin + own).to(tl.int64)[:, None]
    key_at = token * key_token_stride + key_head * key_head_stride + columns
    value_at = token * value_token_stride + key_head * value_head_stride + columns
    key = tl.load(keys + key_at, mask=is_loaded, other=0.0)
    value = tl.load(values + value_at, mask=is_loaded, other=0.0)

    grad_key = tl.zeros((OWN, DIMENSION_BLOCK), tl.float32)
    grad_value = tl.zeros((OWN, DIMENSION_BLOCK), tl.float32)
    end = length
    if WINDOW > 0:
        end = tl.minimum(length, first + OWN + WINDOW - 1)
    edge_end = end if WINDOW > 0 else tl.minimum(end, first + OWN)
    for place in range(GROUP):
        head = key_head * GROUP + place
        head_queries = queries + begin.to(tl.int64) * query_token_stride + head * query_head_stride
        head_grads = grads + begin.to(tl.int64) * grad_token_stride + head * grad_head_stride
        number_at = head.to(tl.int64) * tokens + begin
        for is_edge in tl.static_range(2):
            begin_others = first if is_edge else edge_end
            end_others = edge_end if is_edge else end
            for other_first in range(begin_others, end_others, OTHERS):
                other = other_first + tl.arange(0, OTHERS)
                is_other = other < length
                is_query = is_other[:, None] & is_column
                query = tl.load(
                    head_queries + other[:, None] * query_token_stride + columns, mask=is_query, other=0.0
                )
                grad = tl.load(
                    head_grads + other[:, None] * grad_token_stride + columns, mask=is_query, other=0.0
                )
                log = tl.load(logs + number_at + other, mask=is_other, other=0.0)
                mean = tl.load(means + number_at + other, mask=is_other, other=0.0)
                score = tl.dot(key, query.trans()) * log2_scale
                # Behind the end of the row `grad` is 0, and so is all that is computed from it.
                weight = tl.exp2(score - log)
                if is_edge:
                    weight = tl.where(_attends(other, own[:, None], length, WINDOW), weight, 0.0)
                grad_value = tl.dot(weight.to(grad.dtype), grad, grad_value)
                grad_score = weight * (tl.dot(value, grad.trans()) - mean)
                grad_key = tl.dot(grad_score.to(query.dtype), query, grad_key)
    GROUPS: tl.constexpr = HEADS // GROUP
    grad_at = (token * GROUPS + key_head) * DIMENSION + columns
    tl.store(grad_keys + grad_at, grad_key * scale, mask=is_loaded)
    tl.store(grad_values + grad_at, grad_value, mask=is_loaded)


@triton.jit
def _read_tile(tiles, tile):
    """(where the tile's row begins, length of the row, first place of the tile in it); length 0: no tile."""
    return tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)


@triton.jit
def _key_range(first, WINDOW: tl.constexpr, OTHERS: tl.constexpr):
    """(first key that queries from `first` on attend to, first key that not all of them attend to)."""
    seen = 0
    whole_end = first
    if WINDOW > 0:
        seen = tl.maximum(0, first - WINDOW + 1) // OTHERS * OTHERS
        whole_end = seen
    return seen, whole_end


@triton.jit
def _attends(query, key, length, WINDOW: tl.constexpr):
    """Whether a query attends to a key; both are places in one row."""
    sees = (key <= query) & (key < length)
    if WINDOW > 0:
        sees = sees & (query - key < WINDOW)
    return sees
