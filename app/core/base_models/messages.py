"""What API and engine send each other of base models: search on the Hub, memory, deletion from the cache."""

from typing import Annotated, Literal

from pydantic import Field

from app.core.engine.wire import Wire
from app.core.specs.patterns import HUB_NAME, MODEL_NAME

ModelName = Annotated[str, Field(pattern=MODEL_NAME, max_length=200)]
# The rows of the job that a base model is measured with.
FIT_ROW_TOKENS = 1024


class HubSearchRequest(Wire):
    """A search for models of the Hub."""

    query: str
    limit: int


class HubModel(Wire):
    """A model of the Hub, as a search finds it."""

    name: str = Field(description="Its Hub id: `base_model` takes it.", examples=["Qwen/Qwen3-0.6B"])
    parameters: int | None = Field(None, description="How many numbers its weights are; null: not known.")
    size_bytes: int | None = Field(None, description="Size of its weights; null: not known.")
    license: str | None = Field(None, description="As its page names it.", examples=["apache-2.0"])
    is_gated: bool = Field(False, description="Whether its terms must be accepted on its page first.")
    downloads: int | None = Field(None, description="How often it was downloaded in the last month.")


class HubSearch(Wire):
    """What a search found, or why the Hub could not be asked."""

    state: Literal["ok", "offline", "unreachable", "refused"] = Field(
        description="`ok`: it was asked. `offline`: `HF_HUB_OFFLINE` is set for the worker. `unreachable`: "
        "it does not answer. `refused`: it declined, as for a token that is wrong."
    )
    message: str | None = Field(None, description="Why it was not asked, for a person; null: it was.")
    data: list[HubModel] = Field([], description="Models that may be trained, the most downloaded first.")


class FitRequest(Wire):
    """A base model whose memory is to be estimated."""

    base_model: ModelName


class Fit(Wire):
    """Whether a job of the default QLoRA settings fits into the memory of the worker's device."""

    base_model: str = Field(description="The base model.")
    fits: bool = Field(description="Whether it needs at most 90% of the device's memory.")
    needed_bytes: int = Field(description="Peak memory of the job, by the estimate of preflights.")
    memory_bytes: int = Field(description="All memory of the device.")
    device: str = Field(description="The device, as its driver names it.")
    is_gpu: bool = Field(description="Whether that is a GPU.")
    parameters: int = Field(description="How many numbers the model's weights are.")
    batch_size: int = Field(description="Rows in one forward pass of that job.")
    row_tokens: int = Field(description="Length of its rows, in tokens.")
    gradient_checkpointing: bool = Field(description="Whether that job would compute activations twice.")


class RemoveRequest(Wire):
    """A model to delete from the Hub's cache."""

    base_model: Annotated[str, Field(pattern=HUB_NAME, max_length=200)]


class Removed(Wire):
    """What was deleted."""

    size_bytes: int = Field(description="Size of the files; 0: the model was not there.")
