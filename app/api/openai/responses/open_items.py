"""Items of a response while they are generated, and the events that tell a stream of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from app.api.openai.logprobs import ChatTokenLogprob, chat_logprobs
from app.api.openai.responses.items import (
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
)
from app.core.engine.messages import ReasoningDelta, TokenDelta, ToolCallDelta

Event = dict[str, Any]


class OpenItem(ABC):
    """An item to which more may be added. `output_index`: its place in the response's output."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self._id = item_id
        self._index = output_index

    @abstractmethod
    def item(self, status: Status) -> Item:
        """The item as it is now."""

    @abstractmethod
    def begin(self) -> Iterator[Event]:
        """The events of an item that is empty yet."""

    @abstractmethod
    def done(self, status: Status) -> Iterator[Event]:
        """The events of an item to which nothing more is added."""

    def _item_event(self, verb: Literal["added", "done"], item: Item) -> Event:
        content = item.model_dump(mode="json", exclude_none=True)
        return {"type": f"response.output_item.{verb}", "output_index": self._index, "item": content}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": f"response.{kind}", "item_id": self._id, "output_index": self._index, **fields}


class OpenMessage(OpenItem):
    """A message with one part, which is text."""

    def __init__(self, item_id: str, output_index: int) -> None:
        super().__init__(item_id, output_index)
        self._texts: list[str] = []
        self._logprobs: list[ChatTokenLogprob] | None = None

    def item(self, status: Status) -> Item:
        """The message."""
        return MessageItem(id=self._id, role="assistant", status=status, content=[self._part])

    def begin(self) -> Iterator[Event]:
        """The message, and its part."""
        empty = MessageItem(id=self._id, role="assistant", status="in_progress", content=[])
        yield self._item_event("added", empty)
        part = OutputText(text="", logprobs=[]).model_dump()
        yield self._event("content_part.added", content_index=0, part=part)

    def extend(self, delta: TokenDelta) -> Iterator[Event]:
        """Add text."""
        self._texts.append(delta.text)
        new = chat_logprobs(delta.tokens)
        if new is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += new.content
        logprobs = _dump(new.content if new else None)
        yield self._event("output_text.delta", content_index=0, delta=delta.text, logprobs=logprobs)

    def done(self, status: Status) -> Iterator[Event]:
        """The text, its part, and the message."""
        part = self._part
        logprobs = _dump(self._logprobs)
        yield self._event("output_text.done", content_index=0, text=part.text, logprobs=logprobs)
        content = part.model_dump() | {"logprobs": logprobs}
        yield self._event("content_part.done", content_index=0, part=content)
        yield self._item_event("done", self.item(status))

    @property
    def _part(self) -> OutputText:
        return OutputText(text="".join(self._texts), logprobs=self._logprobs)


class OpenReasoning(OpenItem):
    """What is thought before the answer, with one part."""

    def __init__(self, item_id: str, output_index: int) -> None:
        super().__init__(item_id, output_index)
        self._texts: list[str] = []

    def item(self, status: Status) -> Item:
        """The thoughts."""
        return ReasoningItem(id=self._id, status=status, content=[self._part])

    def begin(self) -> Iterator[Event]:
        """The item, and its part."""
        yield self._item_event("added", ReasoningItem(id=self._id, status="in_progress", content=[]))
        part = ReasoningText(text="").model_dump()
        yield self._event("content_part.added", content_index=0, part=part)

    def extend(self, delta: ReasoningDelta) -> Iterator[Event]:
        """Add text."""
        self._texts.append(delta.text)
        yield self._event("reasoning_text.delta", content_index=0, delta=delta.text)

    def done(self, status: Status) -> Iterator[Event]:
        """The text, its part, and the item."""
        part = self._part
        yield self._event("reasoning_text.done", content_index=0, text=part.text)
        yield self._event("content_part.done", content_index=0, part=part.model_dump())
        yield self._item_event("done", self.item(status))

    @property
    def _part(self) -> ReasoningText:
        return ReasoningText(text="".join(self._texts))


class OpenCall(OpenItem):
    """A call of a function. `call_index`: which of the answer's calls it is."""

    def __init__(self, item_id: str, output_index: int, first: ToolCallDelta) -> None:
        super().__init__(item_id, output_index)
        self.call_index = first.index
        self._call_id = first.id or item_id
        self._name = first.name or ""
        self._arguments: list[str] = []

    def item(self, status: Status) -> Item:
        """The call."""
        return self._call("".join(self._arguments), status)

    def begin(self) -> Iterator[Event]:
        """The call without its arguments."""
        yield self._item_event("added", self._call("", "in_progress"))

    def extend(self, delta: ToolCallDelta) -> Iterator[Event]:
        """Add a piece of the arguments, which are JSON."""
        if delta.arguments:
            self._arguments.append(delta.arguments)
            yield self._event("function_call_arguments.delta", delta=delta.arguments)

    def done(self, status: Status) -> Iterator[Event]:
        """The arguments, and the call."""
        arguments = "".join(self._arguments)
        yield self._event("function_call_arguments.done", name=self._name, arguments=arguments)
        yield self._item_event("done", self.item(status))

    def _call(self, arguments: str, status: Status) -> FunctionCallItem:
        return FunctionCallItem(
            id=self._id, call_id=self._call_id, name=self._name, arguments=arguments, status=status
        )


def _dump(logprobs: list[ChatTokenLogprob] | None) -> list[dict[str, Any]]:
    return [one.model_dump() for one in logprobs or []]
