"""What the engine has read, made and loaded since it started."""

from dataclasses import dataclass


@dataclass
class StepCounts:
    """Totals over all batches. `prompt_tokens` were read by a model, `cached_tokens` found in a KV cache.

    `draft_tokens` were verified, of which answers have `accepted_tokens`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    adapter_loads: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
