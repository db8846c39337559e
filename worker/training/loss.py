"""Makes TRL compute the loss at the learned tokens only, on every device."""

from trl.trainer import utils as trl_utils


def score_learned_tokens_only() -> None:
    """Make TRL use its code for GPUs everywhere, which drops prompts and padding before the output layer.

    Without Triton, TRL 1.16 computes the logits of every position and drops most of them afterwards: half of
    a step's time on a CPU for short answers and a large vocabulary. Loss and gradients are equal.
    """
    if hasattr(trl_utils, "_use_triton"):
        trl_utils._use_triton = lambda device: True
