"""Adds up what an evaluation uses of models, until it is reported."""

from worker.evaluations.reports import ModelUse


class UnreportedUse:
    """What was used of each model since the last report. Used from one event loop."""

    def __init__(self) -> None:
        self._used: dict[str, ModelUse] = {}

    def add(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one request."""
        found = self._used.setdefault(model, ModelUse(model=model))
        found.requests += 1
        found.prompt_tokens += prompt_tokens
        found.completion_tokens += completion_tokens

    def take(self) -> list[ModelUse]:
        """Returns what was added since the last call."""
        used, self._used = self._used, {}
        return list(used.values())
