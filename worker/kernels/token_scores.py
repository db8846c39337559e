"""Scores of tokens from their logits, which are replaced by gradients, in one kernel.

The gradient of a log-probability needs only a factor from the backward pass, so it is made in the forward
pass while the logits exist (as in Liger-Kernel's fused linear cross-entropy, Hsu et al. 2024). The sum of
exponentials is updated while the row is read (Milakov and Gimelshein 2018).

N: tokens. V: the vocabulary.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 4096


def score(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, *, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each target's log-probability and the entropy, in float32, and whether it is the likeliest.

    A logit z is softcap · tanh(scale · z / softcap), or scale · z without a soft cap. The logits, whose rows
    are contiguous, are overwritten by the gradients of the log-probabilities.
    """
    count, width = logits_NV.shape
    log_probs_N, entropy_N = torch.empty(2, count, dtype=torch.float32, device=logits_NV.device)
    is_likeliest_N = torch.empty(count, dtype=torch.bool, device=logits_NV.device)
    _score_kernel[(count,)](
        logits_NV,
        targets_N,
        log_probs_N,
        entropy_N,
        is_likeliest_N,
        logits_NV.stride(0),
        width,
        scale,
        softcap or 1.0,
        HAS_SOFTCAP=softcap is not None,
        BLOCK=min(_BLOCK, triton.next_power_of_2(width)),
        num_warps=8,
    )
    return log_probs_N, entropy_N, is_likeliest_N


# Of one row each is read or written once; by their alignment several kernels would be compiled.
@triton.jit(do_not_specialize_on_alignment=["targets", "log_probs", "entropies", "is_likeliest"])
def _score_kernel(
    logits,
    targets,
    log_probs,
    entropies,
    is_likeliest,
    row_stride,
    width,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: a first reading for its sums, a second one for the gradients."""
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * row_stride
    target = tl.load(targets + token)
    target_value, _target_slope = _shape(tl.load(row + target).to(tl.float32), scale, softcap, HAS_SOFTCAP)
    highest = target_value
    total = target_value * 0.0
    weighted = total
    beaten = total
    for begin in range(0, width, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < width
        value, _slope = _shape(
            tl.load(row + place, mask=inside, other=0.0).to(tl.float32), scale, softcap, HAS_SOFTCAP
        )
        # Of equal logits the first is the likeliest token, as with `argmax`.
        before = (value > target_value) | ((value == target_value) & (place < target))
        beaten += tl.sum((inside & before).to(tl.float32))
        value = tl.where(inside, value, -float("inf"))
        higher = tl.maximum(highest, tl.max(value))
        chance = tl.exp(value - higher)
        shrunk = tl.exp(highest - higher)
        total = total * shrunk + tl.sum(chance)
        weighted = weighted * shrunk + tl.sum(chance * tl.where(inside, value, 0.0))
        highest = higher
    log_total = highest + tl.log(total)
    tl.store(log_probs + token, target_value - log_total)
    tl.store(entropies + token, log_total - weighted / total)
    tl.store(is_likeliest + token, beaten == 0.0)
    for begin in range(0, width, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < width
        value, slope = _shape(
            tl.load(row + place, mask=inside, other=0.0).to(tl.float32), scale, softcap, HAS_SOFTCAP
        )
        # Subtracted in float32: near certainty the difference is smaller than the rounding of either.
        gradient = ((place == target).to(tl.float32) - tl.exp(value - log_total)) * slope
        tl.store(row + place, gradient.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _shape(logit, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """The value that the softmax is taken of, and its derivative by the logit."""
    value = logit * scale
    slope = tl.zeros_like(value) + scale
    if HAS_SOFTCAP:
        # tanh(x) = 2 · sigmoid(2x) - 1
        capped = 2.0 * tl.sigmoid(2.0 * value / softcap) - 1.0
        slope = slope * (1.0 - capped * capped)
        value = capped * softcap
    return value, slope
