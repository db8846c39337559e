"""What all messages between the API and the engine have in common."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Refuses what it does not know: both sides are of one version."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
