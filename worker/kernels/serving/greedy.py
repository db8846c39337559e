"""The likeliest token of each row of a step, and the rows' last tokens and positions after a step.

PyTorch takes 13 kernels for that, each of which runs for as long as it takes to launch it.
Shape letters: B rows of a step, V vocabulary.
"""

import torch
import triton
import triton.language as tl

_MAX_BLOCK = 8192
_ROWS = 256  # to a program, however few there are: the kernel is compiled once


def choose(logits_BV: torch.Tensor, no_token: int) -> torch.Tensor:
    """Return the first of the ids with the highest logit, [B] in int64; `no_token` where that is not finite.

    NaN counts as the highest. Rows may be strided.
    """
    count, vocabulary = logits_BV.shape
    chosen_B = torch.empty(count, dtype=torch.long, device=logits_BV.device)
    block = min(triton.next_power_of_2(vocabulary), _MAX_BLOCK)
    _choose_kernel[(count,)](
        logits_BV,
        chosen_B,
        logits_BV.stride(0),
        vocabulary,
        no_token,
        BLOCK=block,
        num_warps=max(4, block // 512),
    )
    return chosen_B


def advance(
    tokens_B: torch.Tensor,
    positions_B: torch.Tensor,
    sampled_B: torch.Tensor,
    active_B: torch.Tensor,
    id_count: int,
) -> None:
    """Set the last tokens of active rows to the sampled ones, cut to ids below `id_count`, one position on.

    All are int64; `active_B` is 1 or 0.
    """
    count = len(tokens_B)
    _advance_kernel[(triton.cdiv(count, _ROWS),)](
        tokens_B,
        positions_B,
        sampled_B,
        active_B,
        count,
        id_count,
        BLOCK=_ROWS,
        num_warps=4,
    )


@triton.jit
def _choose_kernel(logits, chosen, stride, vocabulary, no_token, BLOCK: tl.constexpr):
    """A program reads a row; each of its lanes keeps the first of its highest logits."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    index = tl.arange(0, BLOCK)
    for first in range(0, vocabulary, BLOCK):
        each = first + tl.arange(0, BLOCK)
        value = tl.load(logits + each, mask=each < vocabulary, other=-float("inf")).to(tl.float32)
        value = tl.where(value == value, value, float("inf"))
        index = tl.where(value > highest, each, index)
        highest = tl.maximum(highest, value)
    top = tl.max(highest, 0)
    token = tl.min(tl.where(highest == top, index, vocabulary), 0)
    tl.store(chosen + row, tl.where(tl.abs(top) < float("inf"), token, no_token).to(tl.int64))


@triton.jit(do_not_specialize=["count"])
def _advance_kernel(tokens, positions, sampled, active, count, id_count, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < count
    is_active = tl.load(active + rows, mask=is_row, other=0)
    token = tl.minimum(tl.maximum(tl.load(sampled + rows, mask=is_row, other=0), 0), id_count - 1)
    tl.store(tokens + rows, token, mask=is_row & (is_active > 0))
    position = tl.load(positions + rows, mask=is_row, other=0)
    tl.store(positions + rows, position + is_active, mask=is_row)
