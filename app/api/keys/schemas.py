"""What the routes of keys and of usage take and return."""

from datetime import UTC, date, datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from app.core.keys.records import Caller, KeyLimits
from app.core.keys.scopes import Scope
from app.core.storage import tables

_MAX_COUNT = 2**31 - 1
_MAX_DAYS = 36_500

Scopes = Annotated[
    list[Scope],
    Field(
        min_length=1,
        max_length=len(Scope),
        description="`read`: see everything but keys and webhooks. `infer`: ask models. `train`: make and "
        "delete datasets, jobs, adapters, exports and evaluations; includes `read`. `admin`: everything.",
    ),
]


class LimitsBody(BaseModel):
    """What a key may take; null: as much as it wants."""

    model_config = ConfigDict(extra="forbid")
    requests_per_minute: int | None = Field(
        None, ge=1, le=_MAX_COUNT, description="Most requests in a minute, over all APIs."
    )
    queued_jobs: int | None = Field(None, ge=0, le=_MAX_COUNT, description="Most jobs of the key that wait.")
    tokens_per_day: int | None = Field(
        None,
        ge=1,
        le=2**53,
        description="Most tokens that models read and make for it on a day (UTC); answers under way "
        "are finished.",
    )

    def as_limits(self) -> KeyLimits:
        """The limits."""
        return KeyLimits(**self.model_dump())


class NewKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=64, description="What it is for.", examples=["support-app"])
    scopes: Scopes = Field([Scope.ADMIN])
    limits: LimitsBody = Field(LimitsBody(), description="What it may take.")
    expires_at: AwareDatetime | None = Field(None, description="When it ends; default: never.")
    expires_in_days: float | None = Field(
        None, gt=0, le=_MAX_DAYS, description="In place of `expires_at`: after how many days it ends."
    )

    @model_validator(mode="after")
    def _ends_once(self) -> Self:
        if self.expires_at and self.expires_in_days:
            raise ValueError("give either `expires_at` or `expires_in_days`")
        return self

    @field_validator("expires_at")
    @classmethod
    def _is_to_come(cls, value: datetime | None) -> datetime | None:
        return _check_to_come(value)


class KeyChange(BaseModel):
    """What is to change of a key; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(None, min_length=1, max_length=64, description="What it is for.")
    scopes: Scopes | None = Field(None, description="What it may do: all of its scopes, anew.")
    limits: LimitsBody | None = Field(None, description="What it may take: all of its limits, anew.")
    expires_at: AwareDatetime | None = Field(None, description="When it ends; null: never.")

    @field_validator("expires_at")
    @classmethod
    def _is_to_come(cls, value: datetime | None) -> datetime | None:
        return _check_to_come(value)


class LimitsRead(BaseModel):
    """What a key may take; null: as much as it wants."""

    requests_per_minute: int | None = Field(description="Most requests in a minute.")
    queued_jobs: int | None = Field(description="Most jobs that wait.")
    tokens_per_day: int | None = Field(description="Most tokens that models read and make on a day (UTC).")


class KeyRead(BaseModel):
    """A key, without the key itself, which is stored nowhere."""

    id: str = Field(description="Names the key.", examples=["key_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="What it is for.")
    scopes: list[Scope] = Field(description="What it may do.")
    limits: LimitsRead = Field(description="What it may take.")
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime | None = Field(description="When it ends; null: never.")
    revoked_at: datetime | None = Field(
        description="When it was revoked; null: it is in force until it ends."
    )

    @classmethod
    def from_row(cls, row: tables.ApiKeyRow) -> "KeyRead":
        """The key as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            scopes=[Scope(scope) for scope in row.scopes],
            limits=LimitsRead(
                requests_per_minute=row.requests_per_minute,
                queued_jobs=row.queued_jobs,
                tokens_per_day=row.tokens_per_day,
            ),
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
        )


class CreatedKeyRead(KeyRead):
    """A key that was just made."""

    key: str = Field(description="The key itself. It is shown only here.", examples=["tsk_…"])


class CallerRead(BaseModel):
    """Who sent this request."""

    id: str | None = Field(description="The key's id; null: the settings' key, or an API without keys.")
    name: str | None = Field(description="The key's name.")
    scopes: list[Scope] = Field(description="What it may do, with the scopes that its own include.")
    limits: LimitsRead = Field(description="What it may take.")

    @classmethod
    def from_caller(cls, caller: Caller) -> "CallerRead":
        """The caller as the API shows it."""
        return cls(
            id=caller.key_id,
            name=caller.name,
            scopes=sorted(caller.scopes),
            limits=LimitsRead(**vars(caller.limits)),
        )


class KeyList(BaseModel):
    """All keys, oldest first."""

    data: list[KeyRead] = Field(description="The keys, revoked ones too.")
    next: None = Field(None, description="Always null: there is one page.")


class UsageRead(BaseModel):
    """What one key has used of one model on one day."""

    day: date = Field(description="The day, in UTC.")
    key: str | None = Field(
        description="The key's id; null: requests with the settings' key, or without one."
    )
    key_name: str | None = Field(description="The key's name.")
    model: str = Field(
        description="The adapter or base model that served, graded or was exported; of jobs, the base model."
    )
    requests: int = Field(description="Requests that a model answered, those of evaluations and graders too.")
    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    training_tokens: int = Field(description="Tokens that jobs were trained on.")
    training_seconds: float = Field(description="Seconds of training jobs, times the GPUs of each.")
    export_seconds: float = Field(description="Seconds of exports.")

    @classmethod
    def from_row(cls, row: tables.UsageRow, names: dict[str, str]) -> "UsageRead":
        """The usage as the API shows it; `names` are those of keys by their ids."""
        return cls(
            day=row.day,
            key=row.key_id or None,
            key_name=names.get(row.key_id),
            model=row.model,
            requests=row.requests,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            training_tokens=row.training_tokens,
            training_seconds=row.training_seconds,
            export_seconds=row.export_seconds,
        )


class UsageList(BaseModel):
    """What was used, the latest day first."""

    data: list[UsageRead] = Field(description="One for each day, key and model.")
    next: None = Field(None, description="Always null: there is one page.")


def _check_to_come(value: datetime | None) -> datetime | None:
    if value is not None and value <= datetime.now(UTC):
        raise ValueError("that time is over")
    return value
