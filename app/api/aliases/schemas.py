"""What the routes of aliases take and return."""

import math
from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.aliases import records
from app.core.aliases.records import MAX_TARGETS, AliasAction
from app.core.aliases.shares import AliasTarget
from app.core.storage import tables

_TOLERANCE = 1e-6
ModelText = Annotated[str, Field(min_length=1, max_length=400)]
Share = Annotated[float, Field(gt=0, le=1)]


class AliasBody(BaseModel):
    """Where an alias points: to one model, or to several, each of which serves a share of the requests."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    target: ModelText | None = Field(
        None,
        description="An adapter's id or name, a checkpoint's too (`name:ckpt-step-20`), or a base model.",
    )
    shares: dict[ModelText, Share] | None = Field(
        None,
        min_length=1,
        max_length=MAX_TARGETS,
        description="Several of these, with the part of the requests that each one serves; together 1.",
    )

    @model_validator(mode="after")
    def _points_somewhere(self) -> Self:
        if (self.target is None) == (self.shares is None):
            raise ValueError("give either `target` or `shares`")
        if self.shares and not math.isclose(sum(self.shares.values()), 1, abs_tol=_TOLERANCE):
            raise ValueError(f"`shares` add up to {sum(self.shares.values()):g}, and not to 1")
        return self

    def as_shares(self) -> dict[str, float]:
        """The models by their names, with the share of each."""
        return self.shares or {self.target or "": 1.0}


class RollbackBody(BaseModel):
    """Which version to go back to."""

    model_config = ConfigDict(extra="forbid")
    version: int | None = Field(
        None, ge=1, le=2**31 - 1, description="Default: the one before the present one."
    )


class AliasTargetRead(BaseModel):
    """A model that an alias points to."""

    name: str = Field(description="The adapter's name, or the base model's.", examples=["helper-v1"])
    share: float = Field(description="The part of the requests that it serves.")
    adapter: str | None = Field(description="The adapter's id; null: the base model alone.")
    step: int | None = Field(description="The optimizer step, of a checkpoint's adapter.")
    base_model: str = Field(description="The base model.")

    @classmethod
    def from_target(cls, target: AliasTarget) -> "AliasTargetRead":
        """The target as the API shows it."""
        return cls(**target.model_dump())


class AliasRead(BaseModel):
    """A name that stays, and what it points to now."""

    name: str = Field(description="`model` takes it.", examples=["support"])
    targets: list[AliasTargetRead] = Field(description="The models that serve it.")
    version: int = Field(description="Counts its changes from 1; the `ETag` is this number in quotes.")
    created_at: datetime = Field(description="When it was made.")
    updated_at: datetime = Field(description="When it was last changed.")

    @classmethod
    def from_row(cls, row: tables.AliasRow) -> "AliasRead":
        """The alias as the API shows it."""
        return cls(
            name=row.name,
            targets=[AliasTargetRead.from_target(one) for one in records.targets_of(row)],
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class AliasVersionRead(BaseModel):
    """A change of an alias, and where it pointed from then on."""

    version: int = Field(description="Counts the changes from 1.")
    action: AliasAction = Field(description="What was done.")
    targets: list[AliasTargetRead] = Field(description="Where it pointed; empty: it was deleted.")
    restored: int | None = Field(description="Of a rollback: the version that it went back to.")
    changed_by: str | None = Field(description="The name of the key that it was done with, if it has one.")
    created_at: datetime = Field(description="When.")

    @classmethod
    def from_row(cls, row: tables.AliasVersionRow) -> "AliasVersionRead":
        """The version as the API shows it."""
        return cls(
            version=row.version,
            action=AliasAction(row.action),
            targets=[AliasTargetRead.from_target(one) for one in records.targets_of(row)],
            restored=row.restored,
            changed_by=row.changed_by,
            created_at=row.created_at,
        )


class AliasVersionPage(BaseModel):
    """A page of versions, the newest first."""

    data: list[AliasVersionRead] = Field(description="The versions.")
    next: int | None = Field(description="For `before`, to go on; null at the end.")
