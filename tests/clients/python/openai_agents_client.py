"""openai-agents: Responses, its default, and chat completions, with a client of its own `base_url`."""

import asyncio
from typing import Any

from agents import (
    Agent,
    AsyncOpenAI,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from calls import KEY, MODEL, QUESTION, URL, CityName, Toolbox, call, run_calls
from pydantic import BaseModel, Field

client = AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
# Traces would go to OpenAI.
set_tracing_disabled(True)
set_default_openai_client(client, use_for_tracing=False)
CHAT = OpenAIChatCompletionsModel(MODEL, openai_client=client)
# One event loop for all calls, since they share the client and its connections.
LOOP = asyncio.Runner()
SHORT = ModelSettings(temperature=0, max_tokens=16)
LONG = ModelSettings(temperature=0, max_tokens=300)


class City(BaseModel):
    """A city."""

    name: CityName
    size: int = Field(ge=0, le=99)


def make_agent(model: Any, settings: ModelSettings, **options: Any) -> Agent[None]:
    return Agent(name="Guide", instructions="Be short.", model=model, model_settings=settings, **options)


def run(agent: Agent[None]) -> Any:
    return LOOP.run(Runner.run(agent, QUESTION))


def check_stream(model: Any) -> None:
    async def read() -> tuple[str, str]:
        found = Runner.run_streamed(make_agent(model, SHORT), QUESTION)
        deltas = [
            event.data.delta
            async for event in found.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
        return "".join(deltas), found.final_output

    streamed, whole = LOOP.run(read())
    assert streamed == whole != ""


def check_agent(model: Any) -> None:
    toolbox = Toolbox()
    tools = [function_tool(toolbox.get_weather), function_tool(toolbox.get_population)]
    toolbox.check(run(make_agent(model, LONG, tools=tools)).final_output)


def check_handoff(model: Any) -> None:
    """Another agent takes over, by a call that the first one must make."""
    second = make_agent(model, SHORT)
    settings = ModelSettings(temperature=0, max_tokens=120, tool_choice="required")
    found = run(make_agent(model, settings, handoffs=[second]))
    assert found.last_agent is second
    assert found.final_output


@call
def chat() -> None:
    assert run(make_agent(CHAT, SHORT)).final_output


@call
def stream() -> None:
    check_stream(CHAT)


@call
def structured() -> None:
    assert isinstance(run(make_agent(CHAT, LONG, output_type=City)).final_output, City)


@call
def agent() -> None:
    check_agent(CHAT)
    check_handoff(CHAT)


@call
def responses() -> None:
    assert run(make_agent(MODEL, SHORT)).final_output
    check_stream(MODEL)


@call
def responses_structured() -> None:
    assert isinstance(run(make_agent(MODEL, LONG, output_type=City)).final_output, City)


@call
def responses_agent() -> None:
    check_agent(MODEL)
    check_handoff(MODEL)


if __name__ == "__main__":
    run_calls()
