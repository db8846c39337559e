"""Counts what one request uses of a model: the tokens that it reads and makes, over all of its answers.

The engine says the tokens of an answer at its end. Those of one that the client broke off are estimated: a
token for each piece of it that had arrived, and the prompt's length.
"""

from collections.abc import Sequence

from app.api.http.access.usage_meter import UsageMeter
from app.core.engine.messages import Delta, Finished, GenerateRequest
from app.core.keys.records import Caller
from app.core.keys.usage import Amounts

_CHARACTERS_OF_A_TOKEN = 4


class RequestUse:
    """The tokens of one request. A prompt that has several answers, `choices` of them, counts once."""

    def __init__(self, meter: UsageMeter, caller: Caller, model: str, *, choices: int = 1) -> None:
        self._meter = meter
        self._caller = caller
        self._model = model
        self._choices = choices
        self._requests: Sequence[GenerateRequest] = ()
        self._pieces: dict[int, int] = {}
        self._is_counted = False

    def begin(self, requests: Sequence[GenerateRequest]) -> None:
        """These requests are sent to the engine; they may be some of several groups."""
        self._requests = requests
        self._pieces = {}

    def count(self, index: int, reply: Delta | Finished) -> None:
        """Count a reply to the request of this number."""
        if not isinstance(reply, Finished):
            self._pieces[index] = self._pieces.get(index, 0) + 1
            return
        self._pieces.pop(index, None)
        self._add(index, reply.usage.prompt_tokens, reply.usage.completion_tokens)

    def end(self) -> None:
        """Count the answers that were broken off."""
        for index, pieces in self._pieces.items():
            self._add(index, _estimate(self._requests[index]), pieces)
        self._pieces = {}

    def _add(self, index: int, prompt_tokens: int, completion_tokens: int) -> None:
        read = prompt_tokens if index % self._choices == 0 else 0
        amounts = Amounts(
            requests=0 if self._is_counted else 1, prompt_tokens=read, completion_tokens=completion_tokens
        )
        self._is_counted = True
        self._meter.add(self._caller.key_id, self._model, amounts)


def _estimate(request: GenerateRequest) -> int:
    """About how many tokens a prompt has."""
    if request.prompt_ids is not None:
        return len(request.prompt_ids)
    texts = [request.prompt or ""] + [turn.content for turn in request.messages or []]
    return sum(map(len, texts)) // _CHARACTERS_OF_A_TOKEN
