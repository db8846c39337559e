"""Functions that a request offers, and whether one must be called, in the form of chat completions."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field, field_validator

from app.api.chat.request_parts import RequestPart
from app.core.chat.json_limits import check_levels
from app.core.chat.tools import FunctionTool
from app.core.engine.messages import NamedFunction, ToolChoice, Tools
from app.core.errors import InvalidRequest
from app.core.specs.patterns import FUNCTION_NAME

MAX_FUNCTIONS = 128


class OfferedFunction(RequestPart):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64, pattern=FUNCTION_NAME, description="The function's name.")
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(
        None, description="The JSON schema of its arguments, an object; null: it has none."
    )
    strict: bool | None = Field(None, description="Whether the arguments must keep to the schema.")

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        check_levels(parameters)
        kind = (parameters or {}).get("type", "object")
        if kind != "object":
            raise ValueError(f"arguments are an object, so the schema's type is 'object', not {kind!r}")
        return parameters

    def as_tool(self) -> FunctionTool:
        """The function as the engine takes it."""
        return FunctionTool(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            strict=bool(self.strict),
        )


def _refuse_other_kinds(value: Any) -> Any:
    kind = value.get("type", "function") if isinstance(value, dict) else "function"
    if kind not in ("function", "allowed_tools"):
        raise ValueError(f"tools of type {kind!r} are not available here, only 'function'")
    return value


class OfferedTool(RequestPart):
    """A tool, which is a function."""

    type: Literal["function"] = Field("function", description="Only functions.")
    function: OfferedFunction = Field(
        description="What may be called: its `name`, `description` and `parameters`."
    )


class FunctionName(RequestPart):
    """Names a function."""

    name: str = Field(description="The function's name.")


class ChosenFunction(RequestPart):
    """The function that must be called; among allowed tools, one of them."""

    type: Literal["function"] = Field(description="Only functions.")
    function: FunctionName = Field(description="Which function: its `name`.")


class AllowedFunctions(RequestPart):
    """Some of the functions, and whether one of them must be called."""

    mode: Literal["auto", "required"] = Field(description="Whether one of them must be called.")
    tools: list[ChosenFunction] = Field(
        min_length=1, max_length=MAX_FUNCTIONS, description="The functions that may be called."
    )


class AllowedFunctionsChoice(RequestPart):
    """Which of the functions may be called this time."""

    type: Literal["allowed_tools"] = Field(description="A choice of the functions.")
    allowed_tools: AllowedFunctions = Field(description="The choice.")


ToolParameter = Annotated[OfferedTool, BeforeValidator(_refuse_other_kinds)]
ToolChoiceParameter = Annotated[
    Literal["none", "auto", "required"] | ChosenFunction | AllowedFunctionsChoice,
    BeforeValidator(_refuse_other_kinds),
]


class ToolFields(RequestPart):
    """The fields of a request that offer functions."""

    tools: list[ToolParameter] | None = Field(
        None, max_length=MAX_FUNCTIONS, description="The functions that the model may call."
    )
    tool_choice: ToolChoiceParameter | None = Field(
        None,
        description="`auto` (the default): the model decides; `required`: it must call one; `none`: it must "
        "not; or the function to call, or those that are allowed.",
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether one answer may call several functions; default true."
    )

    def find_tools(self) -> Tools | None:
        """The functions of the engine's request. Raises InvalidRequest for those that do not go together."""
        functions = [tool.function for tool in self.tools or []]
        return choose_tools(functions, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)


def choose_tools(
    functions: Sequence[OfferedFunction],
    choice: ToolChoiceParameter | None,
    *,
    is_parallel: bool,
    name_param: str = "tools.{}.function.name",
    choice_param: str = "tool_choice",
) -> Tools | None:
    """The functions of the engine's request, or None where there are none.

    `name_param`: where the name of a function is, by its index. Raises InvalidRequest where two have one
    name, or the choice names one that is not there.
    """
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            _refuse(name_param.format(index), f"there are two functions called {name!r}")
    list_param = name_param.partition(".")[0]
    chosen = _named(choice)
    if missing := next((name for name in chosen if name not in names), None):
        _refuse(choice_param, f"there is no function {missing!r} in `{list_param}`")
    if not functions:
        if choice == "required":
            _refuse(choice_param, f"'required' needs `{list_param}`")
        return None
    allowed = chosen if isinstance(choice, AllowedFunctionsChoice) else names
    return Tools(
        functions=[function.as_tool() for function in functions if function.name in allowed],
        choice=_engine_choice(choice),
        parallel=is_parallel,
    )


def _named(choice: ToolChoiceParameter | None) -> list[str]:
    match choice:
        case ChosenFunction(function=function):
            return [function.name]
        case AllowedFunctionsChoice(allowed_tools=allowed):
            return [tool.function.name for tool in allowed.tools]
    return []


def _engine_choice(choice: ToolChoiceParameter | None) -> ToolChoice:
    match choice:
        case None:
            return "auto"
        case ChosenFunction(function=function):
            return NamedFunction(name=function.name)
        case AllowedFunctionsChoice(allowed_tools=allowed):
            return allowed.mode
    return choice


def _refuse(param: str, problem: str) -> NoReturn:
    raise InvalidRequest(f"{param}: {problem}.", param=param)
