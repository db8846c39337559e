"""A page of a list in OpenAI's format: clients send the id of the last item as `after`."""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, Field

Item = TypeVar("Item")


class OpenAIPage(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[Item] = Field(description="The items of this page.")
    has_more: bool = Field(description="Whether there are more; `after` the id of the last one shows them.")
