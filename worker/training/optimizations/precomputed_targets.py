"""The loss without host synchronization: the collator computes which tokens are learned, on the CPU.

TRL selects the learned tokens by a mask on the device, so the host must wait for the device to know how many
there are, four times a pass. The batches of `PaddingFreeCollator` contain their positions and targets
instead. The computation stays TRL's: log-probabilities from the output layer, in chunks of tokens.

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
    """Within this context the loss is computed from `learned` and `targets` of a `PaddingFreeCollator`."""
    base = model.get_base_model()
    original = base.forward

    def forward(
        *args: Any,
        learned: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        if learned is None or targets is None or not fused_lm_head:
            return original(*args, labels=labels, fused_lm_head=fused_lm_head, **kwargs)
        hidden_1TH = base.base_model(*args, **kwargs).last_hidden_state
        return _score(base, _SelectRows.apply(hidden_1TH[0], learned), targets)

    base.forward = forward
    try:
        yield
    finally:
        base.forward = original


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


class _SelectRows(torch.autograd.Function):
    """Select rows of a matrix, each at most once, so the backward pass copies gradients without adding."""

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
