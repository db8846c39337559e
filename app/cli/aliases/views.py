"""The fields of aliases that commands show. Fields that another version adds are ignored."""

from datetime import datetime

from pydantic import BaseModel


class AliasTargetView(BaseModel):
    """A model that an alias points to."""

    name: str
    share: float


class AliasView(BaseModel):
    """An alias."""

    name: str
    targets: list[AliasTargetView]
    version: int
    created_at: datetime
    updated_at: datetime


class AliasVersionView(BaseModel):
    """A change of an alias."""

    version: int
    action: str
    targets: list[AliasTargetView]
    restored: int | None = None
    changed_by: str | None = None
    created_at: datetime


def targets_text(targets: list[AliasTargetView]) -> str:
    """The models that serve, and the share of each where there are several."""
    if len(targets) < 2:
        return "".join(target.name for target in targets)
    return ", ".join(f"{target.name} {target.share:.4g}" for target in targets)
