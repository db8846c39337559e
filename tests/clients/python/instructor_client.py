"""Instructor: `from_provider("openai/<model>", base_url=…)`."""

from typing import Any

import instructor
from calls import KEY, MODEL, QUESTION, URL, CityName, call, run_calls
from pydantic import BaseModel, ConfigDict, Field

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
OPTIONS: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_retries": 0}


class City(BaseModel):
    """A city.

    Other properties are forbidden: in Instructor's JSON mode nothing else keeps a model from adding them.
    """

    model_config = ConfigDict(extra="forbid")

    name: CityName
    size: int = Field(ge=0, le=99)


def client(mode: instructor.Mode | None = None) -> instructor.Instructor:
    return instructor.from_provider(f"openai/{MODEL}", base_url=URL, api_key=KEY, mode=mode)


@call
def chat() -> None:
    answer = client().create(response_model=None, max_tokens=16, **OPTIONS)
    assert answer.choices[0].message.content


@call
def stream() -> None:
    parts = list(client(instructor.Mode.JSON_SCHEMA).create_partial(response_model=City, **OPTIONS))
    assert City.model_validate(parts[-1].model_dump())


@call
def structured() -> None:
    assert isinstance(client(instructor.Mode.JSON_SCHEMA).create(response_model=City, **OPTIONS), City)


@call
def tools() -> None:
    """The default mode."""
    found, completion = client().create_with_completion(response_model=City, max_tokens=300, **OPTIONS)
    assert isinstance(found, City)
    assert completion.choices[0].message.tool_calls


@call
def tools_strict() -> None:
    assert isinstance(client(instructor.Mode.TOOLS_STRICT).create(response_model=City, **OPTIONS), City)


@call
def tools_stream() -> None:
    parts = list(client().create_partial(response_model=City, max_tokens=300, **OPTIONS))
    assert City.model_validate(parts[-1].model_dump())


@call
def responses() -> None:
    found = client(instructor.Mode.RESPONSES_TOOLS).create(response_model=City, max_tokens=300, **OPTIONS)
    assert isinstance(found, City)


if __name__ == "__main__":
    run_calls()
