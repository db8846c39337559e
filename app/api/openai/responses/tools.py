"""Functions that a response may call, and whether it must, in the flat form of /v1/responses."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.api.chat.request_parts import RequestPart
from app.api.chat.tools import (
    MAX_FUNCTIONS,
    AllowedFunctions,
    AllowedFunctionsChoice,
    ChosenFunction,
    FunctionName,
    OfferedFunction,
    ToolChoiceParameter,
    choose_tools,
)
from app.core.engine.messages import Tools


def _refuse_other_tools(value: Any) -> Any:
    """Names a tool that would run on OpenAI's servers, or that is no function with JSON arguments."""
    kind = value.get("type", "function") if isinstance(value, dict) else "function"
    if kind not in ("function", "allowed_tools"):
        raise ValueError(f"tools of type {kind!r} are not available here, only 'function'")
    return value


class FunctionParam(OfferedFunction):
    """A function that the model may call."""

    ignored_fields = frozenset({"allowed_callers", "async", "defer_loading", "output_schema"})
    type: Literal["function"] = Field("function", description="Only functions: no tool runs here.")


class NamedFunctionChoice(RequestPart):
    """The function that must be called; among allowed tools, one of them."""

    type: Literal["function"] = Field(description="Only functions.")
    name: str = Field(description="The function's name.")

    def nested(self) -> ChosenFunction:
        """The same in the form of chat completions."""
        return ChosenFunction(type="function", function=FunctionName(name=self.name))


class AllowedTools(RequestPart):
    """Which of the functions may be called this time."""

    type: Literal["allowed_tools"] = Field(description="A choice of the functions.")
    mode: Literal["auto", "required"] = Field(description="Whether one of them must be called.")
    tools: list[NamedFunctionChoice] = Field(
        min_length=1, max_length=MAX_FUNCTIONS, description="The functions."
    )


ToolParam = Annotated[FunctionParam, BeforeValidator(_refuse_other_tools)]
ToolChoiceParam = Annotated[
    Literal["none", "auto", "required"] | NamedFunctionChoice | AllowedTools,
    BeforeValidator(_refuse_other_tools),
]


def tools_of(
    functions: Sequence[FunctionParam] | None, choice: ToolChoiceParam | None, *, is_parallel: bool
) -> Tools | None:
    """The functions of the engine's request, or None where there are none.

    Raises InvalidRequest where two have one name, or the choice names one that is not there.
    """
    return choose_tools(functions or [], _nested(choice), is_parallel=is_parallel, name_param="tools.{}.name")


def _nested(choice: ToolChoiceParam | None) -> ToolChoiceParameter | None:
    """A choice in the form of chat completions."""
    match choice:
        case NamedFunctionChoice():
            return choice.nested()
        case AllowedTools(mode=mode, tools=tools):
            allowed = AllowedFunctions(mode=mode, tools=[tool.nested() for tool in tools])
            return AllowedFunctionsChoice(type="allowed_tools", allowed_tools=allowed)
    return choice
