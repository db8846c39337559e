"""Calls of functions in answers, in OpenAI's form."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from app.core.engine.answers import GeneratedCall


class CalledFunction(BaseModel):
    """A function's name, and what it is called with."""

    name: str = Field(description="The function's name.")
    arguments: str = Field(description="Its arguments, as JSON. Check them: a model may err.")


class MessageToolCall(BaseModel):
    """A call of a function."""

    id: str = Field(description="Names the call; its result refers to it.")
    type: Literal["function"] = Field(description="Always `function`.")
    function: CalledFunction = Field(description="What is called.")


def as_tool_calls(calls: Sequence[GeneratedCall]) -> list[MessageToolCall] | None:
    """The calls as a message holds them; None where there are none."""
    return [
        MessageToolCall(
            id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments)
        )
        for call in calls
    ] or None
