"""The messages of a chat request, turned into the turns that a chat template renders."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.openai.parameters import MustBeEmpty, MustBeNull
from app.core.engine.messages import ChatMessage


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"] = Field(description="Text is all that is understood.")
    text: str = Field(description="The text.")


class ChatMessageParam(BaseModel):
    """One turn. What an answer of this API carries may be sent back as it came."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who speaks; `developer` is another word for `system`."
    )
    content: str | Annotated[list[TextPart], Field(min_length=1)] = Field(
        description="What is said: text, or parts of type `text`, which are put together."
    )
    name: str | None = Field(None, description="Accepted; templates do not show it.")
    refusal: MustBeNull = Field(None, description="Only null.")
    audio: MustBeNull = Field(None, description="Only null.")
    function_call: MustBeNull = Field(None, description="Only null: the engine calls no functions.")
    tool_calls: MustBeEmpty = Field(None, description="Only null or empty: the engine calls no tools.")
    annotations: MustBeEmpty = Field(None, description="Only null or empty.")

    def as_turn(self) -> ChatMessage:
        """The message as the engine takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)
