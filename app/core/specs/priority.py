"""Which of the waiting work is taken first. Jobs, evaluations and exports have it."""

from typing import Annotated

from pydantic import Field

LOWEST_PRIORITY, HIGHEST_PRIORITY = -10, 10

Priority = Annotated[
    int,
    Field(
        ge=LOWEST_PRIORITY,
        le=HIGHEST_PRIORITY,
        description="Of what waits, a higher one is taken first; above 0 only with a key that has the scope "
        "admin. Of one priority, keys take turns.",
    ),
]
