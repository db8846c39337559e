"""Which pages of the KV cache belong to whom. Texts that begin alike, under one adapter, share whole pages.

Pages whose text may come again are kept until others need the room, least recently used first. Knows no
torch: `kv_cache.py` holds what is in the pages. (The idea of hashed blocks: vLLM's automatic prefix caching.)
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PAGE_TOKENS = 16
# Page 0 is nobody's: page tables are filled up with it.
NULL_PAGE = 0
# A text that is being read by another sequence is worth waiting for from so many pages on.
_WORTH_WAITING_PAGES = 4


@dataclass(frozen=True)
class Owned:
    """Pages for one sequence, in the order of its text; its first `known_tokens` tokens are there already."""

    pages: list[int]
    known_tokens: int


@dataclass(eq=False)
class _Node:
    """A whole page of text after the text of its parent. Not ready: somebody is just reading it."""

    page: int
    key: "_Key"
    is_ready: bool = False


# A page's text means something only after the text before it, and under the adapter that read it.
_Key = tuple["_Node | str | None", tuple[int, ...]]


def page_count(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // PAGE_TOKENS)


class PageBook:
    """Books of the pages 1 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, NULL_PAGE, -1))
        self._users: Counter[int] = Counter()
        self._nodes: dict[_Key, _Node] = {}
        self._nodes_by_page: dict[int, _Node] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used_count(self) -> int:
        """Pages that sequences hold now."""
        return len(self._users)

    def take(self, adapter_id: str | None, token_ids: Sequence[int], length: int) -> Owned | None:
        """Pages for a text that begins with these tokens and may grow to `length`; None: not now.

        The last token given is never among those known: somebody has to compute what comes after it.
        """
        if page_count(length) - len(token_ids) // PAGE_TOKENS > len(self._free) + len(self._idle):
            return None
        nodes = self._known(adapter_id, token_ids[: len(token_ids) - 1])
        ready = [node for node in nodes if node.is_ready]
        if len(nodes) - len(ready) >= _WORTH_WAITING_PAGES:
            return None
        shared = [node.page for node in ready]
        fresh_count = page_count(length) - len(shared)
        idle_shared = sum(page in self._idle for page in shared)
        if fresh_count > len(self._free) + len(self._idle) - idle_shared:
            return None
        for page in shared:
            self._idle.pop(page, None)
        pages = shared + [self._fresh_page() for _ in range(fresh_count)]
        self._users.update(pages)
        self._name(adapter_id, token_ids, pages)
        return Owned(pages, len(shared) * PAGE_TOKENS)

    def learn(self, adapter_id: str | None, token_ids: Sequence[int], pages: list[int]) -> None:
        """The cache holds these tokens' keys and values in these pages now; others may share whole ones."""
        self._name(adapter_id, token_ids, pages)
        own = set(pages)
        for node in self._known(adapter_id, token_ids):
            if node.page in own:
                node.is_ready = True

    def release(self, pages: list[int]) -> None:
        """A sequence needs its pages no more."""
        # The end of a text goes first: without its beginning it could not be found.
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            node = self._nodes_by_page.get(page)
            if node is not None and node.is_ready:
                self._idle[page] = None
            else:
                self._forget(page)
                self._free.append(page)

    def _known(self, adapter_id: str | None, token_ids: Sequence[int]) -> list[_Node]:
        """The nodes of the longest known beginning, ready ones before those that are not."""
        nodes: list[_Node] = []
        parent: _Node | str | None = adapter_id
        for text in _whole_pages(token_ids):
            node = self._nodes.get((parent, text))
            if node is None:
                break
            nodes.append(node)
            parent = node
        return nodes

    def _name(self, adapter_id: str | None, token_ids: Sequence[int], pages: list[int]) -> None:
        """Give whole pages their names, where no other page has them already."""
        parent: _Node | str | None = adapter_id
        for text, page in zip(_whole_pages(token_ids), pages, strict=False):
            node = self._nodes.get((parent, text))
            if node is None:
                if page in self._nodes_by_page:
                    return  # it is known after another text: of two equal beginnings, one went away
                node = self._nodes[parent, text] = self._nodes_by_page[page] = _Node(page, (parent, text))
            parent = node

    def _fresh_page(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._idle.popitem(last=False)
        self._forget(page)
        return page

    def _forget(self, page: int) -> None:
        node = self._nodes_by_page.pop(page, None)
        if node is not None:
            del self._nodes[node.key]


def _whole_pages(token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    bounds = pairwise(range(0, len(token_ids) + 1, PAGE_TOKENS))
    return [tuple(token_ids[start:end]) for start, end in bounds]
