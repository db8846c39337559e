"""The loss without a wait for the device: which tokens are learned is told by whoever made the batch.

TRL picks the learned tokens by a mask that lies on the device, so it must wait there to learn how many there
are, four times a pass, and the device waits for what is launched afterwards. The CPU knew when it joined the
rows. What is computed stays TRL's own: log-probabilities from the output layer, in tiles.

T: tokens of a batch. N: learned tokens. H: the hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer import utils as trl_utils
from trl.trainer.utils import FusedCausalLMOutput

_OUTPUTS = ("log_probs", "entropy", "is_top1")


@contextmanager
def applied(model: PeftModel) -> Iterator[None]:
    """Within it a batch that says `learned` and `targets` (batches.py) is scored by them."""
    base = model.get_base_model()
    plain = base.forward

    def forward(
        *args: Any,
        learned: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        if learned is None or targets is None or not fused_lm_head:
            return plain(*args, labels=labels, fused_lm_head=fused_lm_head, **kwargs)
        hidden_1TH = base.base_model(*args, **kwargs).last_hidden_state
        return _score(base, _Pick.apply(hidden_1TH[0], learned), targets)

    base.forward = forward
    try:
        yield
    finally:
        base.forward = plain


def _score(base: PreTrainedModel, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> FusedCausalLMOutput:
    head = base.get_output_embeddings()
    log_probs_N, entropy_N, _, _, is_top1_N = trl_utils._ChunkedLogProbFunction.apply(
        hidden_NH,
        head.weight,
        head.bias,
        targets_N,
        1.0,
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
        None,
        1.0,
        _OUTPUTS,
    )
    return FusedCausalLMOutput(
        loss=-log_probs_N.sum() / max(1, len(targets_N)),
        log_probs=log_probs_N,
        entropy=entropy_N,
        is_top1=is_top1_N,
        label_mask=torch.ones_like(targets_N, dtype=torch.bool),
    )


class _Pick(torch.autograd.Function):
    """Some rows of a matrix, none twice: so their gradients are put back and not added up."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_N)
        ctx.tokens = len(hidden_TH)
        return hidden_TH.index_select(0, places_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places_N,) = ctx.saved_tensors
        grad_TH = grad_NH.new_zeros(ctx.tokens, grad_NH.shape[1])
        return grad_TH.index_copy_(0, places_N, grad_NH), None
