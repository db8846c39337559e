"""The base of all parts of a job's request."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Refuses what it does not know, so that a typing error is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
