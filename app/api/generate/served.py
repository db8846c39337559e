"""Which model served a request, as an answer says it: in a header, and as its `model` under /v1.

OpenAI's answers name the snapshot that served (`gpt-4o-2024-08-06`) where the request named an alias of it
(`gpt-4o`). So it is here: the answer to an alias names the adapter or the base model behind it; whoever named
one of these reads back the name that was sent.
"""

from app.core.adapters.targets import Target

SERVED_MODEL = "x-tunesmith-model"


def served_headers(target: Target) -> dict[str, str]:
    """The header that names the adapter or the base model that served."""
    return {SERVED_MODEL: target.name}


def answered_model(target: Target, asked: str) -> str:
    """The `model` of an answer, by the one that was asked for."""
    return target.name if target.alias else asked
