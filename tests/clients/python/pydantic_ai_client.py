"""PydanticAI with `OpenAIProvider`: chat, Responses, which its `openai:` models use, and embeddings."""

import asyncio
from typing import Any

from calls import KEY, MODEL, QUESTION, TOO_LONG, URL, CityName, NoError, Toolbox, call, run_calls
from pydantic import BaseModel, Field
from pydantic_ai import Agent, Embedder, NativeOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelContextWindowExceededError
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

PROVIDER = OpenAIProvider(base_url=URL, api_key=KEY)
CHAT = OpenAIChatModel(MODEL, provider=PROVIDER)
RESPONSES = OpenAIResponsesModel(MODEL, provider=PROVIDER)
SHORT = ModelSettings(temperature=0, max_tokens=16)
LONG = ModelSettings(temperature=0, max_tokens=300)


class City(BaseModel):
    """A city."""

    name: CityName
    size: int = Field(ge=0, le=99)


def check_text(model: Model) -> None:
    assert Agent(model, instructions="Be short.", model_settings=SHORT).run_sync(QUESTION).output


def check_stream(model: Model) -> None:
    async def read() -> str:
        async with Agent(model, model_settings=SHORT).run_stream(QUESTION) as answer:
            return "".join([text async for text in answer.stream_text(delta=True)])

    assert asyncio.run(read()) == Agent(model, model_settings=SHORT).run_sync(QUESTION).output


def check_output(model: Model, output_type: Any) -> None:
    found = Agent(model, output_type=output_type, model_settings=LONG).run_sync(QUESTION)
    assert isinstance(found.output, City)


def check_agent(model: Model) -> None:
    toolbox = Toolbox()
    agent = Agent(model, tools=[toolbox.get_weather, toolbox.get_population], model_settings=LONG)
    toolbox.check(agent.run_sync(QUESTION).output)


@call
def chat() -> None:
    check_text(CHAT)


@call
def stream() -> None:
    check_stream(CHAT)


@call
def structured() -> None:
    check_output(CHAT, NativeOutput(City))


@call
def tools() -> None:
    """The default of output types: a function that the model must call."""
    check_output(CHAT, ToolOutput(City))


@call
def agent() -> None:
    check_agent(CHAT)


@call
def responses() -> None:
    check_text(RESPONSES)
    check_stream(RESPONSES)


@call
def responses_structured() -> None:
    check_output(RESPONSES, NativeOutput(City))
    check_output(RESPONSES, City)


@call
def responses_agent() -> None:
    check_agent(RESPONSES)


@call
def embeddings() -> None:
    embedder = Embedder(OpenAIEmbeddingModel(MODEL, provider=PROVIDER))
    first, second = embedder.embed_documents_sync(["Oslo", "Lima"]).embeddings
    assert len(first) == len(second) > 1


@call
def errors() -> None:
    try:
        Agent(CHAT, model_settings=SHORT).run_sync(TOO_LONG)
    except ModelContextWindowExceededError:
        return
    raise NoError


if __name__ == "__main__":
    run_calls()
