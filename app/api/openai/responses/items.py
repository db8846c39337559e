"""Items of /v1/responses: messages, calls of functions, their outputs, and reasoning.

The same classes read the items of a request and write those of a response, so that what a response returns
can be sent back as it is.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from app.api.chat.request_parts import RequestPart
from app.api.openai.logprobs import ChatTokenLogprob
from app.core.datasets.problems import shown

MAX_ID_LENGTH = 128
MAX_NAME_LENGTH = 128
Status = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[str, Field(max_length=MAX_ID_LENGTH)]


def _refuse_others(noun: str, default: str, known: Sequence[str]) -> BeforeValidator:
    """A validator that fills in a default `type`, and names a type that is not among the known ones."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("type")
        if kind is None:
            return value | {"type": default}
        if kind not in known:
            found = kind if isinstance(kind, str) else "another kind"
            raise ValueError(
                f"{noun} of type {shown(found)} are not supported here; known are {', '.join(known)}"
            )
        return value

    return BeforeValidator(check)


class InputText(RequestPart):
    """Text that was sent."""

    ignored_fields = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})
    type: Literal["input_text"] = Field("input_text", description="Text that was sent.")
    text: str = Field(description="The text.")


class OutputText(RequestPart):
    """Text that was generated."""

    ignored_fields = frozenset({"parsed", "prompt_cache_breakpoint"})
    type: Literal["output_text"] = Field("output_text", description="Text that was generated.")
    text: str = Field(description="The text.")
    annotations: list[Any] = Field([], description="Always empty in what is generated here.")
    logprobs: list[ChatTokenLogprob] | None = Field(
        None, description="Its tokens, with `include: [message.output_text.logprobs]`."
    )


class Refusal(RequestPart):
    """What another service's model refused with; it is read as text."""

    type: Literal["refusal"] = Field("refusal", description="A refusal.")
    refusal: str = Field(description="Its text.")


class SummaryText(RequestPart):
    """A summary of reasoning by another service."""

    type: Literal["summary_text"] = Field("summary_text", description="A summary.")
    text: str = Field(description="Its text.")


class ReasoningText(RequestPart):
    """What the model thought."""

    type: Literal["reasoning_text"] = Field("reasoning_text", description="A thought.")
    text: str = Field(description="Its text.")


MessagePart = Annotated[
    Annotated[InputText | OutputText | Refusal, Field(discriminator="type")],
    _refuse_others("parts", "input_text", ("input_text", "output_text", "refusal")),
]
OutputPart = Annotated[InputText, _refuse_others("parts", "input_text", ("input_text",))]


class MessageItem(RequestPart):
    """One turn of text."""

    ignored_fields = frozenset({"phase"})
    type: Literal["message"] = Field("message", description="A message.")
    id: ItemId | None = Field(None, description="Names this item.")
    role: Literal["user", "system", "developer", "assistant"] = Field(
        description="Who speaks; `developer` is another word for `system`."
    )
    content: str | list[MessagePart] = Field(description="Text, or parts of text, which are put together.")
    status: Status | None = Field(None, description="`incomplete`: it was cut short.")

    def normalized(self) -> "MessageItem":
        """The same with its content as parts, of the type that fits its role."""
        parts = self.content if isinstance(self.content, list) else [InputText(text=self.content)]
        content: list[MessagePart] = (
            [OutputText(text=part.text) if isinstance(part, InputText) else part for part in parts]
            if self.role == "assistant"
            else [InputText(text=text_of(part)) for part in parts]
        )
        return self.model_copy(update={"content": content, "status": self.status or "completed"})

    @property
    def text(self) -> str:
        """Its parts, put together."""
        return self.content if isinstance(self.content, str) else "".join(map(text_of, self.content))


class FunctionCallItem(RequestPart):
    """A call of a function."""

    ignored_fields = frozenset({"async", "caller", "created_by", "namespace", "parsed_arguments"})
    type: Literal["function_call"] = Field("function_call", description="A call of a function.")
    id: ItemId | None = Field(None, description="Names this item.")
    call_id: str = Field(
        min_length=1, max_length=MAX_ID_LENGTH, description="What the call's output refers to."
    )
    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="The function's name.")
    arguments: str = Field(description="Its arguments: a JSON object, as text.")
    status: Status | None = Field(None, description="`incomplete`: it was cut short.")

    def normalized(self) -> "FunctionCallItem":
        """The same with a status."""
        return self.model_copy(update={"status": self.status or "completed"})


class FunctionOutputItem(RequestPart):
    """What a call of a function returned."""

    ignored_fields = frozenset({"caller", "created_by", "name", "namespace"})
    type: Literal["function_call_output"] = Field("function_call_output", description="A call's output.")
    id: ItemId | None = Field(None, description="Names this item.")
    call_id: str = Field(
        min_length=1, max_length=MAX_ID_LENGTH, description="Which call it is the output of."
    )
    output: str | list[OutputPart] = Field(description="Text, or parts of text, which are put together.")
    status: Status | None = Field(None, description="Always `completed` in a response.")

    def normalized(self) -> "FunctionOutputItem":
        """The same with a status."""
        return self.model_copy(update={"status": self.status or "completed"})

    @property
    def text(self) -> str:
        """Its parts, put together."""
        return self.output if isinstance(self.output, str) else "".join(part.text for part in self.output)


class ReasoningItem(RequestPart):
    """What a model thought before it answered."""

    ignored_fields = frozenset({"encrypted_content"})
    type: Literal["reasoning"] = Field("reasoning", description="Reasoning.")
    id: ItemId | None = Field(None, description="Names this item.")
    summary: list[SummaryText] = Field(
        [], description="Empty here: the thoughts themselves are in `content`."
    )
    content: list[ReasoningText] | None = Field(None, description="The thoughts.")
    status: Status | None = Field(None, description="`incomplete`: it was cut short.")

    def normalized(self) -> "ReasoningItem":
        """The same with a status."""
        return self.model_copy(update={"status": self.status or "completed", "content": self.content or []})

    @property
    def text(self) -> str:
        """The thoughts; of another service that does not show them, their summary."""
        parts: Sequence[ReasoningText | SummaryText] = self.content or self.summary
        return "\n\n".join(part.text for part in parts)


class ItemReference(RequestPart):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"] = Field("item_reference", description="A stored item.")
    id: ItemId = Field(description="Its id.")


Item = Annotated[
    MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem, Field(discriminator="type")
]
ITEM_PREFIXES: dict[type[RequestPart], str] = {
    MessageItem: "msg",
    FunctionCallItem: "fc",
    FunctionOutputItem: "fco",
    ReasoningItem: "rs",
}
item_adapter: TypeAdapter[Item] = TypeAdapter(Item)


def _name_type(value: Any) -> Any:
    """Fills in the `type` of a message, and of a reference, which may come without."""
    if isinstance(value, dict) and value.get("type") is None:
        return value | {"type": "item_reference" if set(value) <= {"id", "type"} else "message"}
    return value


InputItem = Annotated[
    Annotated[
        MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem | ItemReference,
        Field(discriminator="type"),
    ],
    _refuse_others(
        "items",
        "message",
        ("message", "function_call", "function_call_output", "reasoning", "item_reference"),
    ),
    BeforeValidator(_name_type),
]


def text_of(part: InputText | OutputText | Refusal) -> str:
    """The text of a message's part."""
    return part.refusal if isinstance(part, Refusal) else part.text


def with_ids(items: Sequence[Item], new_item_id: Callable[[str, int], str]) -> list[Item]:
    """Normalized items, each with an id: its own, or a new one of a prefix and its position."""
    return [
        item.normalized().model_copy(
            update={"id": item.id or new_item_id(ITEM_PREFIXES[type(item)], position)}
        )
        for position, item in enumerate(items)
    ]
