"""How long a step of the engine may take before it counts as frozen. Knows no torch."""

# The first steps of a model compile kernels and capture graphs, and their speed is not known yet.
_UNKNOWN_SPEED_SECONDS = 600.0
# A general model on a CPU reads a whole prompt in one step.
_UNKNOWN_SECONDS_PER_TOKEN = 1.0
_UNMEASURED_STEPS = 3
_MIN_SECONDS = 10.0
# So many times longer than expected may a step take: other work on the machine slows it down.
_SLOWDOWN = 10.0
# The measured time of a token shrinks by this factor with each step that is faster.
_DECAY = 0.9


class StepLimit:
    """The limit for the steps of one model, which follows from the time that its last steps took."""

    def __init__(self) -> None:
        self._step_count = 0
        self._seconds_per_token = 0.0

    def of(self, token_count: int) -> float:
        """The seconds that a step of so many tokens, read and made, may take."""
        if self._step_count <= _UNMEASURED_STEPS:
            return max(_UNKNOWN_SPEED_SECONDS, token_count * _UNKNOWN_SECONDS_PER_TOKEN)
        return max(_MIN_SECONDS, _SLOWDOWN * token_count * self._seconds_per_token)

    def record(self, token_count: int, seconds: float) -> None:
        """Record the time that a step took."""
        self._step_count += 1
        if self._step_count > _UNMEASURED_STEPS and token_count:
            faster = _DECAY * self._seconds_per_token
            self._seconds_per_token = max(seconds / token_count, faster)
