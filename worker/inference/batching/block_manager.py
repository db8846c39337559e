"""Which blocks of the KV cache belong to which sequence. Sequences with equal beginnings share whole blocks.

Only texts read under the same adapter share blocks. Blocks that are in use by no sequence stay cached until
their memory is needed, and are evicted least recently used first. (The idea is vLLM's automatic
prefix caching.) Knows no torch: `model/kv_cache.py` holds the keys and values.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Tokens of one block.
BLOCK_TOKENS = 16
# Block 0 is never allocated: unused entries of block tables point to it.
NULL_BLOCK = 0
# Wait for another sequence to finish reading the same text if it saves at least so many blocks.
_WORTH_WAITING_BLOCKS = 4


@dataclass(frozen=True)
class Allocation:
    """Blocks of one sequence, in the order of its text. Its first `cached_tokens` tokens need no prefill."""

    blocks: list[int]
    cached_tokens: int


@dataclass(eq=False)
class _Node:
    """A full block of the prefix tree. `is_ready` is false while a sequence is still reading its text."""

    block: int
    key: "_Key"
    is_ready: bool = False


# The parent (the node of the text before, or the adapter's id at the root) and the block's own token ids.
_Key = tuple["_Node | str | None", tuple[int, ...]]


def block_count(tokens: int) -> int:
    """The number of blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class BlockManager:
    """Allocates the blocks 1 to `count` - 1 and finds those that already hold the beginning of a text."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, NULL_BLOCK, -1))
        self._users: Counter[int] = Counter()
        self._nodes: dict[_Key, _Node] = {}
        self._nodes_by_block: dict[int, _Node] = {}
        # Blocks without a user whose content may be used again, least recently used first.
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def used_count(self) -> int:
        """The number of blocks that sequences use now."""
        return len(self._users)

    def allocate(
        self, adapter_id: str | None, token_ids: Sequence[int], max_length: int
    ) -> Allocation | None:
        """Allocate blocks for a text that begins with `token_ids` and may grow to `max_length` tokens.

        Returns None while too few blocks are free, or while another sequence reads the same beginning and
        waiting for it is cheaper. The last of `token_ids` never counts as cached: the model must read it to
        compute the next token.
        """
        if block_count(max_length) - len(token_ids) // BLOCK_TOKENS > len(self._free) + len(self._evictable):
            return None
        nodes = self._cached_prefix(adapter_id, token_ids[: len(token_ids) - 1])
        ready = [node for node in nodes if node.is_ready]
        if len(nodes) - len(ready) >= _WORTH_WAITING_BLOCKS:
            return None
        shared = [node.block for node in ready]
        new_count = block_count(max_length) - len(shared)
        evictable_shared = sum(block in self._evictable for block in shared)
        if new_count > len(self._free) + len(self._evictable) - evictable_shared:
            return None
        for block in shared:
            self._evictable.pop(block, None)
        blocks = shared + [self._new_block() for _ in range(new_count)]
        self._users.update(blocks)
        self._insert(adapter_id, token_ids, blocks)
        return Allocation(blocks, len(shared) * BLOCK_TOKENS)

    def commit(self, adapter_id: str | None, token_ids: Sequence[int], blocks: list[int]) -> None:
        """Mark the full blocks of `token_ids` as ready: the cache now holds their keys and values."""
        self._insert(adapter_id, token_ids, blocks)
        own = set(blocks)
        for node in self._cached_prefix(adapter_id, token_ids):
            if node.block in own:
                node.is_ready = True

    def release(self, blocks: list[int]) -> None:
        """Remove one user of each block. Ready blocks without users stay cached, others become free."""
        # The end of a text is evicted before its beginning, without which it could not be found.
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            node = self._nodes_by_block.get(block)
            if node is not None and node.is_ready:
                self._evictable[block] = None
            else:
                self._delete_node(block)
                self._free.append(block)

    def _cached_prefix(self, adapter_id: str | None, token_ids: Sequence[int]) -> list[_Node]:
        """The nodes of the longest prefix in the tree, in text order: ready ones come first."""
        nodes: list[_Node] = []
        parent: _Node | str | None = adapter_id
        for text in _full_blocks(token_ids):
            node = self._nodes.get((parent, text))
            if node is None:
                break
            nodes.append(node)
            parent = node
        return nodes

    def _insert(self, adapter_id: str | None, token_ids: Sequence[int], blocks: list[int]) -> None:
        """Add the full blocks to the prefix tree, except where it has a node for the same text already."""
        parent: _Node | str | None = adapter_id
        for text, block in zip(_full_blocks(token_ids), blocks, strict=False):
            node = self._nodes.get((parent, text))
            if node is None:
                if block in self._nodes_by_block:
                    return  # The block has a node under another parent: an equal prefix was evicted since.
                node = self._nodes[parent, text] = self._nodes_by_block[block] = _Node(block, (parent, text))
            parent = node

    def _new_block(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._evictable.popitem(last=False)
        self._delete_node(block)
        return block

    def _delete_node(self, block: int) -> None:
        node = self._nodes_by_block.pop(block, None)
        if node is not None:
            del self._nodes[node.key]


def _full_blocks(token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    bounds = pairwise(range(0, len(token_ids) + 1, BLOCK_TOKENS))
    return [tuple(token_ids[start:end]) for start, end in bounds]
