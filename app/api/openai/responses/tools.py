"""Functions that a response may call, and whether it must, in the flat form of /v1/responses."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from app.api.chat.request_parts import RequestPart
from app.api.openai.parameters import reject_parameter
from app.api.openai.responses.items import MAX_NAME_LENGTH
from app.core.chat.json_limits import check_levels
from app.core.chat.tools import FunctionTool
from app.core.engine.messages import NamedFunction, Tools

MAX_TOOLS = 128


def _refuse_built_in(value: Any) -> Any:
    """Names a tool that would run on OpenAI's servers, or that is no function with JSON arguments."""
    kind = value.get("type", "function") if isinstance(value, dict) else "function"
    if kind != "function":
        raise ValueError(f"tools of type {kind!r} are not available here, only 'function'")
    return value


class FunctionParam(RequestPart):
    """A function that the model may call."""

    ignored_fields = frozenset({"allowed_callers", "async", "defer_loading", "output_schema"})
    type: Literal["function"] = Field("function", description="Only functions: no tool runs here.")
    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="The function's name.")
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(
        None, description="The JSON schema of its arguments, an object; null: it has none."
    )
    strict: bool | None = Field(None, description="Whether the arguments must keep to the schema.")

    @field_validator("parameters")
    @classmethod
    def _check_levels(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        check_levels(parameters)
        return parameters

    def as_tool(self) -> FunctionTool:
        """The function as the engine takes it."""
        return FunctionTool(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            strict=bool(self.strict),
        )


class NamedFunctionChoice(RequestPart):
    """The function that must be called; among allowed tools, one of them."""

    type: Literal["function"] = Field(description="Only functions.")
    name: str = Field(description="The function's name.")


class AllowedTools(RequestPart):
    """Which of the functions may be called this time."""

    type: Literal["allowed_tools"] = Field(description="A choice of the functions.")
    mode: Literal["auto", "required"] = Field(description="Whether one of them must be called.")
    tools: list[NamedFunctionChoice] = Field(min_length=1, max_length=MAX_TOOLS, description="The functions.")


def _refuse_other_choices(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind is not None and kind not in ("function", "allowed_tools"):
        raise ValueError(f"tools of type {kind!r} are not available here, only 'function'")
    return value


ToolParam = Annotated[FunctionParam, BeforeValidator(_refuse_built_in)]
ToolChoiceParam = Annotated[
    Literal["none", "auto", "required"] | NamedFunctionChoice | AllowedTools,
    BeforeValidator(_refuse_other_choices),
]


def tools_of(
    functions: Sequence[FunctionParam] | None, choice: ToolChoiceParam | None, *, parallel: bool | None
) -> Tools | None:
    """The functions of the engine's request, or None where there are none.

    Raises InvalidRequest where a function has no name of its own, or the choice names one that is not there.
    """
    names = [function.name for function in functions or []]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        reject_parameter("tools", f"there are two functions called {repeated!r}")
    chosen = _named(choice)
    if missing := next((name for name in chosen if name not in names), None):
        reject_parameter("tool_choice", f"there is no function {missing!r} among the tools")
    if not functions:
        if choice == "required":
            reject_parameter("tool_choice", "'required' needs `tools`")
        return None
    allowed = chosen if isinstance(choice, AllowedTools) else names
    return Tools(
        functions=[function.as_tool() for function in functions if function.name in allowed],
        choice=_engine_choice(choice),
        parallel=parallel is not False,
    )


def _named(choice: ToolChoiceParam | None) -> list[str]:
    match choice:
        case NamedFunctionChoice(name=name):
            return [name]
        case AllowedTools(tools=tools):
            return [tool.name for tool in tools]
    return []


def _engine_choice(choice: ToolChoiceParam | None) -> Literal["none", "auto", "required"] | NamedFunction:
    match choice:
        case None:
            return "auto"
        case NamedFunctionChoice(name=name):
            return NamedFunction(name=name)
        case AllowedTools(mode=mode):
            return mode
    return choice
