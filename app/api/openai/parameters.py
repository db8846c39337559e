"""Parameters that chat and completions share: supported ones, and those accepted only with a neutral value.

As in OpenAI's API, null means a parameter's default.
"""

from typing import Annotated, Any, NoReturn

from pydantic import Field

from app.api.chat.request_parts import RequestPart
from app.api.generate.schemas import MAX_CHOICES
from app.core.engine.sampling import (
    DRAWN_SEED,
    MAX_LOGIT_BIAS,
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MAX_STOPS,
    MAX_TOP_K,
    MIN_REPETITION_PENALTY,
    Sampling,
    StopText,
)
from app.core.errors import InvalidRequest
from app.core.specs.job import QuantizationSpec

# What names the user of a request, the most telling first.
_SUBJECT_FIELDS = ("user", "safety_identifier", "prompt_cache_key")
SUBJECT_DESCRIPTION = "Of an alias with several models: the same one is always served by the same model."
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class StreamOptions(RequestPart):
    """What a stream says besides the text."""

    include_usage: bool | None = Field(None, description="A last chunk without choices says the usage.")
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is added to the chunks.")


class SamplingBody(RequestPart):
    """What to generate with, and how to sample."""

    model: str = Field(
        min_length=1, max_length=400, description="An alias, a base model's name, or an adapter's id or name."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="Default 1; 0: the likeliest token.")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Sample from tokens with this much probability."
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        le=MAX_SEED,
        description="The same seed gives the same answers; -1 draws one, as null does.",
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Texts that end the answer; they are not part of it."
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Taken from the score of every token that the answer has."
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="The same, as often as the answer has the token."
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_LOGIT_BIAS, description="Added to the scores of tokens, by token id."
    )
    top_k: int | None = Field(
        None, ge=-1, le=MAX_TOP_K, description="Not OpenAI's. Sample from so many likeliest tokens."
    )
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Not OpenAI's. Leave out tokens less probable than this share of the top one.",
    )
    repetition_penalty: float | None = Field(
        None,
        ge=MIN_REPETITION_PENALTY,
        le=MAX_REPETITION_PENALTY,
        description="Not OpenAI's. Above 1: what prompt or answer said becomes less likely.",
    )
    quantization: QuantizationSpec | None = Field(
        None,
        description="Not OpenAI's. For a base model: how its weights are held; see `system_fingerprint`.",
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    user: str | None = Field(None, description=SUBJECT_DESCRIPTION)

    @property
    def subject(self) -> str | None:
        """Whose request it is: the first of the fields that name its user, or None."""
        given = (getattr(self, name, None) for name in _SUBJECT_FIELDS)
        return next((one for one in given if isinstance(one, str) and one), None)

    def sampling(self, *, max_new_tokens: int, logprobs: int | None) -> Sampling:
        """The sampling parameters of the engine's request."""
        given = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
        }
        if self.top_p == 0:
            # A nucleus of no probability holds the likeliest token alone.
            given |= {"top_p": None, "top_k": 1}
        if self.top_k == -1:
            given["top_k"] = None
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            seed=None if self.seed in (None, DRAWN_SEED) else self.seed & MAX_SEED,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
            logprobs=logprobs,
            **{name: value for name, value in given.items() if value is not None},
        )


class CommonBody(SamplingBody):
    """What chat and completions have in common: how many answers, and in what form."""

    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Answers to each prompt.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")

    @property
    def choice_count(self) -> int:
        """The number of choices for each prompt."""
        return 1 if self.n is None else self.n

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Raise InvalidRequest for parameters that do not go together."""
        if self.stream_options is not None and not self.stream:
            reject_parameter("stream_options", "it needs `stream`")


def as_prompts(texts: str | list[str] | list[int] | list[list[int]]) -> list[dict[str, Any]]:
    """The engine's fields for each text: `prompt` for a string, `prompt_ids` for a list of tokens."""
    if isinstance(texts, str):
        return [{"prompt": texts}]
    if isinstance(texts[0], int):
        return [{"prompt_ids": texts}]
    return [{"prompt" if isinstance(one, str) else "prompt_ids": one} for one in texts]


def count_parts(texts: str | list[str] | list[int] | list[list[int]]) -> int:
    """The number of texts and token ids."""
    if isinstance(texts, str):
        return 1
    return sum(len(one) if isinstance(one, list) else 1 for one in texts)


def reject_parameter(param: str, problem: str) -> NoReturn:
    """Raise InvalidRequest that names the parameter."""
    raise InvalidRequest(f"{param}: {problem}.", param=param)
