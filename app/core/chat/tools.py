"""Functions that a model may call, and its calls, as datasets, requests and answers hold them. Pure.

The names are those of OpenAI's function calling, which TRL, chat templates and most clients use.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class FunctionTool(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str = Field(description="The function's name.")
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(
        None, description="The JSON schema of its arguments, an object; null: it has none."
    )
    strict: bool = Field(False, description="Whether the arguments must keep to the schema.")

    def as_template_tool(self) -> dict[str, Any]:
        """The function as chat templates read it (transformers' `get_json_schema`)."""
        function: dict[str, Any] = {
            "name": self.name,
            "description": self.description or "",
            "parameters": self.parameters or {"type": "object", "properties": {}},
        }
        return {"type": "function", "function": function}


class ToolCall(BaseModel):
    """A call of a function that an assistant's turn makes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str = Field(description="The function's name.")
    arguments: dict[str, Any] = Field(description="Its arguments by name.")
    id: str | None = Field(None, description="What the result of the call refers to.")

    def as_template_call(self) -> dict[str, Any]:
        """The call as chat templates read it, its arguments as an object."""
        call: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return call if self.id is None else {"id": self.id, **call}
