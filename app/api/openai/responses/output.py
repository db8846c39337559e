"""The output of a response, item by item, and the events of its stream, from the engine's replies.

The events follow OpenAI's order: an item is added, its part is added, deltas, the part is done, the item is
done. The same code builds a response that is not streamed.
"""

from collections.abc import Callable, Iterator

from app.api.openai.responses.items import Item, Status
from app.api.openai.responses.open_items import Event, OpenCall, OpenItem, OpenMessage, OpenReasoning
from app.core.engine.messages import Delta, Finished, ReasoningDelta, TokenDelta, ToolCallDelta


class ResponseOutput:
    """Collects the items of one response. `new_item_id`: an item's id, by a prefix and the item's number."""

    def __init__(self, new_item_id: Callable[[str, int], str]) -> None:
        self._new_item_id = new_item_id
        self._begun = 0
        self._open: OpenItem | None = None
        self._items: list[Item] = []

    def add(self, reply: Delta) -> Iterator[Event]:
        """Add what the engine has generated. Yields the events of it."""
        open_item = self._open
        match reply:
            case ToolCallDelta(is_withdrawn=True):
                yield from self._withdraw()
            case ToolCallDelta():
                if not isinstance(open_item, OpenCall) or open_item.call_index != reply.index:
                    open_item = OpenCall(*self._next("fc"), reply)
                    yield from self._begin(open_item)
                yield from open_item.extend(reply)
            case ReasoningDelta():
                if not isinstance(open_item, OpenReasoning):
                    open_item = OpenReasoning(*self._next("rs"))
                    yield from self._begin(open_item)
                yield from open_item.extend(reply)
            case TokenDelta(text="", tokens=None):
                pass
            case TokenDelta():
                if not isinstance(open_item, OpenMessage):
                    open_item = OpenMessage(*self._next("msg"))
                    yield from self._begin(open_item)
                yield from open_item.extend(reply)

    def end(self, status: Status) -> Iterator[Event]:
        """End the last item, with this status. An answer without any is an empty message."""
        if self._open is None and not self._items:
            yield from self._begin(OpenMessage(*self._next("msg")))
        yield from self._close(status)

    def cut(self) -> list[Item]:
        """The items of an answer that has broken off; the last one is incomplete."""
        return [*self._items, self._open.item("incomplete")] if self._open else self._items

    @property
    def items(self) -> list[Item]:
        """The items that have ended."""
        return self._items

    def _next(self, prefix: str) -> tuple[str, int]:
        """The id and the place of the next item."""
        self._begun += 1
        return self._new_item_id(prefix, self._begun - 1), self._begun - 1

    def _begin(self, item: OpenItem) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = item
        yield from item.begin()

    def _close(self, status: Status) -> Iterator[Event]:
        if self._open is not None:
            ended, self._open = self._open, None
            yield from ended.done(status)
            self._items.append(ended.item(status))

    def _withdraw(self) -> Iterator[Event]:
        """End a call that turns out to be none: the response will not have it, and its text follows."""
        if self._open is not None:
            withdrawn, self._open = self._open, None
            yield from withdrawn.done("incomplete")


def end_status(finished: Finished) -> Status:
    """The status of the last item of an answer that has ended so."""
    return "incomplete" if finished.finish_reason == "length" else "completed"
