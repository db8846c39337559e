"""Errors of generation: prompts that are too long, and engines that can't generate."""

from app.core.errors import InvalidRequest, Unavailable


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the base model's context."""

    code = "context_length_exceeded"


class NoEngine(Unavailable):
    """No worker that serves is running."""

    code = "no_engine"


class GpuTaken(Unavailable):
    """A training job has the GPU; serving is paused until it ends."""

    code = "gpu_taken"


class EngineFailed(Unavailable):
    """The engine stopped while it was answering."""

    code = "engine_failed"
