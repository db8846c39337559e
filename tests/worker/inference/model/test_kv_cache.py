"""The KV cache: its shape is the model's, its memory is allocated on use, and blocks can be cleared."""

import torch

from worker.inference.batching.block_manager import BLOCK_TOKENS
from worker.inference.model.kv_cache import KVCache


def test_a_layer_has_the_shape_of_its_first_keys():
    layer = KVCache(block_count=5).layer(0, torch.zeros(3, 7, 8), torch.zeros(3, 7, 4))

    assert layer.keys_PSGD.shape == (5, BLOCK_TOKENS, 3, 8)
    assert layer.values_PSGD.shape == (5, BLOCK_TOKENS, 3, 4)


def test_cleared_blocks_are_zero_and_others_stay():
    cache = KVCache(block_count=4)
    layer = cache.layer(0, torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    layer.keys_PSGD.fill_(torch.nan)

    cache.clear([1, 3])

    assert layer.keys_PSGD[[1, 3]].eq(0).all()
    assert layer.keys_PSGD[2].isnan().all()


def test_bytes_of_a_token():
    cache = KVCache(block_count=2)
    for index in range(2):
        states = torch.zeros(3, 1, 8, dtype=torch.bfloat16)
        cache.layer(index, states, states)

    assert cache.bytes_per_token == 2 * 2 * 3 * 8 * 2


def test_an_enormous_cache_takes_no_memory_before_it_is_used():
    layer = KVCache(block_count=10**6).layer(0, torch.zeros(2, 1, 32), torch.zeros(2, 1, 32))

    assert layer.keys_PSGD.nbytes > 10**9
    assert layer.keys_PSGD[10**6 - 1].eq(0).all()
