"""Log-probabilities of the learned tokens and their gradient from one product with the output layer.

TRL multiplies with the output layer in the forward pass, and again in the backward pass, since it saves no
logits. The gradient of a log-probability needs only a factor from the backward pass, so it is computed in the
forward pass while the logits of a chunk of tokens exist (as in Liger-Kernel's fused linear cross-entropy, Hsu
et al. 2024).

N: learned tokens. C: tokens of a chunk. H: the hidden size. V: the vocabulary.
"""

from typing import Any

import torch

# Logits of a chunk.
_TILE = 1 << 23


class OnePassLogProbs(torch.autograd.Function):
    """Replaces TRL's ChunkedLogProbFunction where the output layer is frozen and has no soft cap."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log-probability in float32, entropy in float32, whether it is the likeliest) of each token."""
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        needs_grad = ctx.needs_input_grad[0]
        grads: list[torch.Tensor] = []
        scores: list[tuple[torch.Tensor, ...]] = []
        with torch.autocast(device, enabled=False):
            weight_VH = weight_VH.to(dtype)
            bias_V = None if bias_V is None else bias_V.to(dtype)
            tokens_at_once = max(1, _TILE // len(weight_VH))
            for hidden_CH, targets_C in zip(
                hidden_NH.to(dtype).split(tokens_at_once), targets_N.split(tokens_at_once), strict=True
            ):
                logits_CV = torch.nn.functional.linear(hidden_CH, weight_VH, bias_V).float()
                logsum_C = logits_CV.logsumexp(dim=1)
                target_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
                is_likeliest_C = logits_CV.argmax(dim=1) == targets_C
                chances_CV = (logits_CV - logsum_C[:, None]).exp_()
                entropy_C = logsum_C - torch.linalg.vecdot(chances_CV, logits_CV)
                scores.append((target_C - logsum_C, entropy_C, is_likeliest_C))
                if needs_grad:
                    # d log p(target) / d hidden = the target's own weight - the mean weight under p.
                    grads.append(torch.addmm(weight_VH[targets_C], chances_CV.to(dtype), weight_VH, alpha=-1))
        log_probs_N, entropy_N, is_likeliest_N = (torch.cat(parts) for parts in zip(*scores, strict=True))
        ctx.mark_non_differentiable(entropy_N, is_likeliest_N)
        ctx.set_materialize_grads(False)
        ctx.dtype = hidden_NH.dtype
        if needs_grad:
            ctx.save_for_backward(torch.cat(grads))
        return log_probs_N, entropy_N, is_likeliest_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor | None, *_others: Any) -> tuple[torch.Tensor | None, ...]:
        """Multiply the saved gradient of each token by its factor."""
        if grad_N is None:
            return None, None, None, None
        (grad_NH,) = ctx.saved_tensors
        return (grad_NH * grad_N[:, None].to(grad_NH.dtype)).to(ctx.dtype), None, None, None


class LogProbFunction:
    """Replaces the function class on which TRL 1.16 calls `apply` with these arguments."""

    def __init__(self, trl_function: Any) -> None:
        self.trl_function = trl_function

    def apply(
        self,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[torch.Tensor | None, ...]:
        """Returns what TRL's function returns; calls that one for arguments that are not supported."""
        is_trained = weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad)
        known = set(outputs) <= {"log_probs", "entropy", "is_top1"}
        is_unscaled = temperature == 1 and softcap is None and logit_scale == 1
        if is_trained or not is_unscaled or not known or not len(hidden_NH):
            rest = (temperature, chunk_size, softcap, logit_scale, outputs)
            found: tuple[torch.Tensor | None, ...] = self.trl_function.apply(
                hidden_NH, weight_VH, bias_V, targets_N, *rest
            )
            return found
        log_probs_N, entropy_N, is_likeliest_N = OnePassLogProbs.apply(
            hidden_NH, weight_VH, bias_V, targets_N
        )
        return log_probs_N, entropy_N, None, None, is_likeliest_N
