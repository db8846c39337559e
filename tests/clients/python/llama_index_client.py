"""LlamaIndex: `OpenAILike`, `OpenAILikeResponses` and `OpenAILikeEmbedding` with `api_base`."""

import asyncio
from typing import Any

from calls import KEY, MODEL, QUESTION, URL, CityName, Toolbox, call, run_calls
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
from pydantic import BaseModel, Field

SERVICE: dict[str, Any] = {
    "model": MODEL,
    "api_base": URL,
    "api_key": KEY,
    "temperature": 0,
    "max_retries": 0,
}
MESSAGES = [ChatMessage(role="system", content="Be short."), ChatMessage(role="user", content=QUESTION)]


class City(BaseModel):
    """A city."""

    name: CityName
    size: int = Field(ge=0, le=99)


def model(max_tokens: int = 16, **options: Any) -> OpenAILike:
    return OpenAILike(
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=8192,
        max_tokens=max_tokens,
        **SERVICE | options,
    )


def responses_model(max_output_tokens: int = 16) -> OpenAILikeResponses:
    return OpenAILikeResponses(
        is_function_calling_model=True,
        context_window=8192,
        max_output_tokens=max_output_tokens,
        **SERVICE,
    )


def tools_of(toolbox: Toolbox) -> list[FunctionTool]:
    return [FunctionTool.from_defaults(fn) for fn in (toolbox.get_weather, toolbox.get_population)]


@call
def chat() -> None:
    assert model().chat(MESSAGES).message.content
    assert model().complete("Oslo is").text


@call
def stream() -> None:
    pieces = list(model().stream_chat(MESSAGES))
    assert "".join(piece.delta or "" for piece in pieces) == model().chat(MESSAGES).message.content


@call
def structured() -> None:
    """By calls of a function, which is how this class asks for objects."""
    prompt = PromptTemplate("Which city? {question}")
    assert isinstance(model(300).structured_predict(City, prompt, question=QUESTION), City)


@call
def structured_schema() -> None:
    asked = model(300, should_use_structured_outputs=True).as_structured_llm(City)
    assert isinstance(asked.chat(MESSAGES).raw, City)


@call
def tools() -> None:
    llm, toolbox = model(300), Toolbox()
    found = llm.chat_with_tools(tools_of(toolbox), user_msg=QUESTION, tool_required=True)
    assert llm.get_tool_calls_from_response(found)[0].tool_kwargs["city"]
    result = llm.predict_and_call(tools_of(toolbox), user_msg=QUESTION, tool_choice="required")
    assert toolbox.called
    assert str(result)


def run_agent(llm: Any) -> None:
    toolbox = Toolbox()
    agent = FunctionAgent(tools=tools_of(toolbox), llm=llm, streaming=True)

    async def run() -> str:
        return str(await agent.run(QUESTION))

    toolbox.check(asyncio.run(run()))


@call
def agent() -> None:
    run_agent(model(300))


@call
def responses() -> None:
    asking = responses_model()
    whole = asking.chat(MESSAGES).message.content
    assert whole
    assert "".join(piece.delta or "" for piece in asking.stream_chat(MESSAGES)) == whole


@call
def responses_agent() -> None:
    run_agent(responses_model(300))


@call
def embeddings() -> None:
    client = OpenAILikeEmbedding(model_name=MODEL, api_base=URL, api_key=KEY)
    first, second = client.get_text_embedding_batch(["Oslo", "Lima"])
    assert len(first) == len(second) > 1


if __name__ == "__main__":
    run_calls()
