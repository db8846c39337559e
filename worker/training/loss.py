"""Where the loss is computed: at the tokens that are learned, and nowhere else."""

from trl.trainer import utils as trl_utils


def score_learned_tokens_only() -> None:
    """Make TRL take its path for GPUs everywhere: it leaves out prompts and padding before the vocabulary.

    Without Triton, TRL 1.16 scores every position and drops most of them afterwards: half of a step's time on
    a CPU for short answers and a large vocabulary. Loss and gradients are the same.
    """
    if hasattr(trl_utils, "_use_triton"):
        trl_utils._use_triton = lambda device: True
