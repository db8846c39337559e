"""The messages of a chat request, turned into the turns that a chat template renders."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.api.openai.parameters import MustBeEmpty, MustBeNull, RequestPart
from app.core.engine.messages import ChatMessage

# Anthropic's and OpenRouter's marks of what a prompt cache should hold.
_CACHE_FIELDS = frozenset({"cache_control"})
# What other services' answers carry besides the text, and what clients add to an answer (openai's `parsed`).
_ANSWER_FIELDS = frozenset(
    {
        "annotations",
        "citations",
        "images",
        "parsed",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "thinking_blocks",
    }
)


# OpenAI's other kinds of parts, and vLLM's.
_OTHER_PARTS = {
    "image_url": "image",
    "input_image": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "file",
    "input_file": "file",
}


class TextPart(RequestPart):
    """A piece of a message."""

    ignored_fields = _CACHE_FIELDS | {"annotations"}
    type: Literal["text"] = Field(description="Text is all that is understood.")
    text: str = Field(description="The text.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_parts(cls, content: Any) -> Any:
        kind = content.get("type") if isinstance(content, dict) else None
        if isinstance(kind, str) and kind in _OTHER_PARTS:
            raise ValueError(f"{_OTHER_PARTS[kind]} parts are not supported")
        return content


class ChatMessageParam(RequestPart):
    """One turn. What an answer of this API or of another one carries may be sent back as it came."""

    ignored_fields = _CACHE_FIELDS | _ANSWER_FIELDS
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

    def as_turn(self) -> ChatMessage:
        """The message as the engine takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)
