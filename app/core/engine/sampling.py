"""How tokens are chosen, and the bounds within which the engine computes soundly."""

from typing import Annotated

from pydantic import AfterValidator, Field

from app.core.engine.wire import Wire

MAX_NEW_TOKENS = 32_768
MAX_LOGIT_BIAS = 300
MAX_TOP_LOGPROBS = 20
# Below it a division of the scores by the temperature leaves nothing but the likeliest token.
MIN_TEMPERATURE = 1e-5
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10.0
# The engine's integers have 64 bits.
MAX_TOP_K = MAX_SEED = 2**63 - 1
# llama.cpp's and Ollama's seed for a new one each time.
DRAWN_SEED = -1
MAX_STOPS = 16
MAX_STOP_LENGTH = 10_000
# OpenAI's number for a token of hardly any probability; JSON has no infinity.
MIN_LOGPROB = -9999.0

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class Sampling(Wire):
    """How tokens are chosen."""

    max_new_tokens: int = Field(256, ge=1, le=MAX_NEW_TOKENS, description="Most tokens to make.")
    temperature: float = Field(
        0.7,
        ge=0,
        le=2,
        description=f"0, or anything below {MIN_TEMPERATURE:f}: always the likeliest token (greedy).",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens with this much probability."
    )
    top_k: int = Field(
        0, ge=0, le=MAX_TOP_K, description="Sample from so many likeliest tokens; 0: from all."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens less probable than this share of the likeliest one."
    )
    repetition_penalty: float = Field(
        1.0,
        ge=MIN_REPETITION_PENALTY,
        le=MAX_REPETITION_PENALTY,
        description="Above 1: what prompt or answer said becomes less likely.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from the score of every token that the answer has."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="The same, as often as the answer has the token."
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=MAX_LOGIT_BIAS, description="Added to the scores of tokens, by token id."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Say the log-probability of each token made and of so many of the likeliest instead: the "
        f"model's own, before bias, penalties and temperature; {MIN_LOGPROB:.0f} at least.",
    )
    seed: Annotated[int | None, AfterValidator(lambda seed: None if seed == DRAWN_SEED else seed)] = Field(
        None,
        ge=DRAWN_SEED,
        le=MAX_SEED,
        description=f"The same seed gives the same text; {DRAWN_SEED} draws one, as null does.",
    )
    stop: list[StopText] = Field(
        [], max_length=MAX_STOPS, description="Texts that end the answer; they are not part of it."
    )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature < MIN_TEMPERATURE
