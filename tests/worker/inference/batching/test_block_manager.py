"""Allocating, sharing, evicting and releasing blocks: none is lost and none is given out twice."""

import random

from worker.inference.batching.block_manager import BLOCK_TOKENS, BlockManager, block_count

TEXT = list(range(100))


def allocate_and_commit(manager: BlockManager, adapter_id=None, text=TEXT, length=120):
    allocation = manager.allocate(adapter_id, text, length)
    manager.commit(adapter_id, text, allocation.blocks)
    return allocation


def test_blocks_suffice_for_the_length():
    allocation = BlockManager(20).allocate(None, TEXT, 120)

    assert len(set(allocation.blocks)) == block_count(120)
    assert allocation.cached_tokens == 0
    assert 0 not in allocation.blocks


def test_nothing_is_allocated_while_too_few_blocks_are_free():
    manager = BlockManager(10)
    allocation = manager.allocate(None, TEXT, 120)

    assert manager.allocate("other", TEXT, 120) is None
    manager.release(allocation.blocks)
    assert manager.allocate("other", TEXT, 120) is not None


def test_the_same_beginning_is_shared_while_and_after_it_is_used():
    manager = BlockManager(40)
    first = allocate_and_commit(manager)
    second = manager.allocate(None, [*TEXT[:50], 7, 7, 7], 60)
    manager.release(first.blocks)
    manager.release(second.blocks)
    third = manager.allocate(None, TEXT, 120)

    assert second.cached_tokens == 48
    assert second.blocks[:3] == first.blocks[:3]
    assert third.cached_tokens == 96


def test_adapters_do_not_share():
    manager = BlockManager(40)
    allocate_and_commit(manager, "one")

    assert manager.allocate("two", TEXT, 120).cached_tokens == 0


def test_the_last_token_is_always_left_to_compute():
    manager = BlockManager(40)
    text = TEXT[: 2 * BLOCK_TOKENS]
    allocate_and_commit(manager, text=text)

    assert manager.allocate(None, text, 60).cached_tokens == BLOCK_TOKENS


def test_blocks_are_not_shared_before_they_are_committed():
    manager = BlockManager(40)
    first = manager.allocate(None, TEXT, 120)
    assert manager.allocate(None, TEXT, 120) is None

    manager.commit(None, TEXT[:80], first.blocks)
    assert manager.allocate(None, TEXT, 120).cached_tokens == 80


def test_blocks_released_before_commit_are_forgotten():
    manager = BlockManager(40)
    first = manager.allocate(None, TEXT, 120)
    manager.release(first.blocks)

    assert manager.allocate(None, TEXT, 120).cached_tokens == 0


def test_least_recently_used_blocks_are_evicted_first():
    manager = BlockManager(1 + 2 * block_count(120))
    old = allocate_and_commit(manager, "old")
    new = allocate_and_commit(manager, "new")
    manager.release(old.blocks)
    manager.release(new.blocks)
    manager.release(manager.allocate("old", TEXT, 120).blocks)
    manager.allocate("third", TEXT, 120)

    assert manager.allocate("old", TEXT, 100).cached_tokens == 96


def test_blocks_are_never_lost_and_never_given_twice():
    rng = random.Random(0)
    manager = BlockManager(64)
    held: list[tuple[str | None, list[int], list[int]]] = []
    for _ in range(3000):
        if held and rng.random() < 0.5:
            adapter, text, blocks = held.pop(rng.randrange(len(held)))
            if rng.random() < 0.8:
                manager.commit(adapter, text, blocks)
            manager.release(blocks)
            continue
        adapter = rng.choice([None, "a"])
        text = [rng.randrange(2)] * rng.choice([1, 16, 40]) + TEXT[: rng.randrange(1, 99)]
        allocation = manager.allocate(adapter, text, len(text) + rng.randrange(30))
        if allocation is None:
            continue
        fresh = allocation.blocks[allocation.cached_tokens // BLOCK_TOKENS :]
        assert not set(fresh) & {block for _, _, blocks in held for block in blocks}
        held.append((adapter, text, allocation.blocks))
    for _, _, blocks in held:
        manager.release(blocks)

    assert manager.used_count == 0
    assert len(manager.allocate("b", [1], 63 * BLOCK_TOKENS).blocks) == 63
