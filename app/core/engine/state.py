"""What an engine says of itself: whether it moves, and what it holds, loads and has served."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from app.core.engine.messages import BaseModelRef, ServingPath
from app.core.engine.wire import Wire


class ServedBase(Wire):
    """A base model that an engine holds."""

    base_model: BaseModelRef
    weight_bits: int = Field(
        description="4: packed as QLoRA packs them; else unpacked once, or never packed."
    )
    adapters: list[str] = Field([], description="Ids of the adapters loaded on it.")
    rows: int | None = Field(None, description="Answers generated at the same time; more requests wait.")


class LoadingBase(Wire):
    """A base model that an engine is loading; until it is there, requests for it wait."""

    base_model: BaseModelRef
    since: datetime = Field(description="When loading began.")


class WaitingRequests(Wire):
    """How many requests wait for which base model, loaded or not."""

    base_model: BaseModelRef
    count: int = Field(description="How many.")


class EngineHealth(Wire):
    """Whether an engine works: each request for it asks the loop for a sign, which its next step gives."""

    status: Literal["ok"] = "ok"
    running: int = Field(0, description="Sequences that are being generated.")
    waiting: int = Field(0, description="Sequences in the queue.")
    silent_seconds: float = Field(
        0.0, description="How long what the loop does now delays the sign asked for."
    )
    limit_seconds: float = Field(0.0, description="How long what it does now may take.")
    is_loading: bool = Field(False, description="Whether a base model is being loaded.")
    problem: str | None = Field(None, description="What is wrong with an external engine behind it.")

    @property
    def is_moving(self) -> bool:
        """Whether the loop moves, or does what may take so long."""
        return self.silent_seconds <= self.limit_seconds


class ServedPath(Wire):
    """How an engine has served a base model on one path since it started, whether or not it is loaded now."""

    base_model: str = Field(description="A Hub id or the name of a local model.")
    path: ServingPath = Field(description="Which code of the engine generates.")
    reason: str | None = Field(
        None, description="What in the base model the paged engine can't compute; null: nothing."
    )
    tokens_per_second: float | None = Field(
        None, description="Tokens made a second for one request, a mean over the last answers."
    )


class EngineState(Wire):
    """What the engine serves now; it stands in the worker's row."""

    base_model: BaseModelRef | None = Field(None, description="The base model that was used last.")
    adapters: list[str] = Field([], description="Ids of the adapters that are loaded, on whichever base.")
    bases: list[ServedBase] = Field(
        [], description="Base models that are loaded, the one used last at the end."
    )
    max_base_models: int = Field(1, description="Base models loaded at the same time, where memory allows.")
    is_external: bool = Field(
        False, description="An external engine generates: jobs of this host do not share its device."
    )
    served: list[ServedPath] = Field(
        [], description="How the base models that were used last were served, the latest at the end."
    )
    loading: LoadingBase | None = Field(None, description="The base model that is being loaded.")
    waiting: list[WaitingRequests] = Field([], description="Requests that have not begun.")
    paused_by: str | None = Field(
        None, description="Id of the job that has the GPU, while serving is paused."
    )
    shares_with: str | None = Field(
        None,
        description="Id of the job that trains on the GPU beside serving.",
    )

    @property
    def loaded(self) -> list[BaseModelRef]:
        """Base models that need not be loaded, the one used last first."""
        bases = [base.base_model for base in reversed(self.bases)]
        return bases or ([self.base_model] if self.base_model else [])
