"""Errors of generation: prompts that are too long, and engines that can't generate."""

from typing import Self

from app.core.errors import InvalidRequest, Unavailable


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the base model's context."""

    code = "context_length_exceeded"

    @classmethod
    def of(cls, tokens: int, max_length: int, context_length: int, *, has_answer: bool = True) -> Self:
        """The error for a prompt of so many tokens, where `max_length` fit, with one to make if there is any.

        Clients look for words of it to shorten a conversation: LiteLLM, PydanticAI, CrewAI and others for its
        first sentence, which is OpenAI's, LangChain for "prompt is too long".
        """
        hint = "Shorten the prompt."
        if max_length < context_length:
            hint += f" The engine has memory for {max_length} of the base model's {context_length} tokens."
        rest = ", and at least one more has to fit for the answer." if has_answer else "."
        return cls(
            f"This model's maximum context length is {max_length} tokens. However, the prompt is too long: "
            f"it has {tokens} tokens{rest}",
            param="prompt",
            hint=hint,
        )


class NoEngine(Unavailable):
    """No worker that serves is running."""

    code = "no_engine"


class GpuTaken(Unavailable):
    """A training job has the GPU; serving is paused until it ends."""

    code = "gpu_taken"


class EngineFailed(Unavailable):
    """The engine stopped while it was answering."""

    code = "engine_failed"


class VllmUnreachable(Unavailable):
    """The external vLLM does not respond."""

    code = "vllm_unreachable"


class AdaptersNotShared(Unavailable):
    """The external vLLM has no folder in which it could read adapters."""

    code = "adapters_not_shared"


class AdaptersNotUpdatable(Unavailable):
    """The external vLLM does not load adapters at run time."""

    code = "adapters_not_updatable"
