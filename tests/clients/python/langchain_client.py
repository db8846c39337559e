"""LangChain: `ChatOpenAI`, `OpenAIEmbeddings` and agents with `base_url`."""

from typing import Any

from calls import KEY, MODEL, QUESTION, TOO_LONG, URL, CityName, NoError, Toolbox, call, run_calls
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

NAMES = ("get_weather", "get_population")


def model(max_tokens: int = 16, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=URL, api_key=KEY, model=MODEL, temperature=0, max_retries=0, max_tokens=max_tokens, **options
    )


class City(BaseModel):
    """A city."""

    name: CityName
    size: int = Field(ge=0, le=99)


@call
def chat() -> None:
    answer = model().invoke([("system", "Be short."), ("human", QUESTION)])
    assert answer.content
    assert answer.usage_metadata["output_tokens"] <= 16


@call
def stream() -> None:
    chunks = list(model(stream_usage=True).stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == model().invoke(QUESTION).content
    assert any(chunk.usage_metadata for chunk in chunks)


@call
def structured() -> None:
    assert isinstance(model(300).with_structured_output(City).invoke(QUESTION), City)


@call
def structured_function_calling() -> None:
    asked = model(300).with_structured_output(City, method="function_calling")
    assert isinstance(asked.invoke(QUESTION), City)


@call
def tools() -> None:
    toolbox = Toolbox()
    bound = model(300).bind_tools([toolbox.get_weather, toolbox.get_population], tool_choice="any")
    whole, *_ = bound.invoke(QUESTION).tool_calls
    assert whole["name"] in NAMES
    first, *others = bound.stream(QUESTION)
    for chunk in others:
        first += chunk
    called = first.tool_calls[0]
    assert (called["name"], called["args"]) == (whole["name"], whole["args"])


def run_agent(**options: Any) -> None:
    toolbox = Toolbox()
    tools = [tool(toolbox.get_weather), tool(toolbox.get_population)]
    agent = create_agent(model(300, **options), tools, system_prompt="Use the functions.")
    found = agent.invoke({"messages": [("human", QUESTION)]})
    toolbox.check(found["messages"][-1].text)


@call
def agent() -> None:
    run_agent()


@call
def responses() -> None:
    asking = model(use_responses_api=True)
    assert asking.invoke(QUESTION).text
    assert "".join(chunk.text for chunk in asking.stream(QUESTION))


@call
def responses_structured() -> None:
    asked = model(300, use_responses_api=True).with_structured_output(City)
    assert isinstance(asked.invoke(QUESTION), City)


@call
def responses_agent() -> None:
    run_agent(use_responses_api=True)


@call
def embeddings() -> None:
    """Without `check_embedding_ctx_length=False` the client sends tokens of OpenAI's own tokenizer."""
    client = OpenAIEmbeddings(base_url=URL, api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    first, second = client.embed_documents(["Oslo", "Lima"])
    assert len(first) == len(second) > 1
    assert max(abs(a - b) for a, b in zip(client.embed_query("Oslo"), first, strict=True)) < 1e-4


@call
def errors() -> None:
    try:
        model().invoke(TOO_LONG)
    except ContextOverflowError:
        return
    raise NoError


if __name__ == "__main__":
    run_calls()
