"""The cache grows with what runs, keeps what it holds, and stays within its budget."""

import torch

from worker.inference.kv_cache import KVCache, Layer


def make_cache(*, max_tokens: int = 10_000, rows: int = 2, length: int = 10) -> tuple[KVCache, Layer]:
    cache = KVCache(max_tokens=max_tokens)
    cache.reserve(rows, length)
    states_BHTD = torch.zeros(1, 3, 1, 8)
    return cache, cache.layer(0, states_BHTD, states_BHTD)


def test_growing_keeps_what_was_stored():
    cache, layer = make_cache()
    layer.keys_RLHD[1, 5] = 7.0

    cache.reserve(9, 1000)

    assert layer.keys_RLHD[1, 5].eq(7).all()
    assert layer.keys_RLHD.shape[0] >= 9
    assert layer.keys_RLHD.shape[1] >= 1000


def test_budget_bounds_rows_times_length():
    cache, layer = make_cache(max_tokens=4096, rows=16, length=256)

    cache.reserve(1, 4096)

    assert layer.keys_RLHD.shape[:2] == (1, 4096)


def test_small_requests_take_little():
    _, layer = make_cache(rows=1, length=10)

    assert layer.keys_RLHD.shape[:2] == (4, 256)


def test_a_row_moves_with_its_tokens():
    cache, layer = make_cache()
    layer.values_RLHD[1, :3] = 5.0

    cache.move(1, 0, 3)

    assert layer.values_RLHD[0, :3].eq(5).all()


def test_bytes_of_a_token():
    cache, _ = make_cache()

    assert cache.bytes_per_token == 2 * 3 * 8 * 4
