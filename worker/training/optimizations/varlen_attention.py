"""Varlen attention in transformers: rows are concatenated without padding, and none attends to another.

transformers passes where rows begin under its names for flash attention, `cu_seq_lens_q` and `max_length_q`;
no mask is made. Rows are computed by a Triton kernel (worker/kernels/varlen_attention.py) or PyTorch's
`varlen_attn` on a GPU, and row by row on a CPU.

T: tokens of all rows. H: query heads. K: key heads. D: width of a head. N: rows. L: tokens of one row.
"""

import itertools
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

NAME = "tunesmith_varlen"
# Arguments that change attention and are not supported; the trial at a job's start fails on each.
_UNKNOWN = ("softcap", "s_aux")


class VarlenAttention(Protocol):
    """Causal attention within each row, [T, H, D]. `window`: tokens attended to, the query's own included."""

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        starts: torch.Tensor,  # int32 [N + 1]: where rows begin, and where the last one ends
        longest: int,
        *,
        scale: float,
        window: int | None,
    ) -> torch.Tensor: ...


def register(kernel: VarlenAttention) -> None:
    """Register an attention function with transformers under `NAME`.

    No mask function is registered with it: transformers would build a mask by reading tensors on the device.
    """

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int | None = None,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        unknown = [name for name in _UNKNOWN if others.get(name) is not None]
        if unknown or dropout or is_causal is False or len(query) != 1:
            raise NotImplementedError(f"varlen attention with {', '.join(unknown) or 'dropout or a batch'}")
        if cu_seq_lens_q is None or max_length_q is None:
            raise NotImplementedError("this model does not pass on where rows begin")
        # From [1, heads, T, D]. `squeeze`, since the gradient of an index is a copy padded with zeros.
        q_THD, k_TKD, v_TKD = (heads.squeeze(0).transpose(0, 1) for heads in (query, key, value))
        scale = q_THD.shape[-1] ** -0.5 if scaling is None else scaling
        o_THD = kernel(q_THD, k_TKD, v_TKD, cu_seq_lens_q, max_length_q, scale=scale, window=sliding_window)
        return o_THD[None], None

    AttentionInterface.register(NAME, attend)


def row_by_row(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """PyTorch's scaled_dot_product_attention, once for each row, on any device."""
    ends = starts.tolist()
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    rows = zip(*(heads.split(lengths) for heads in (q_THD, k_TKD, v_TKD)), strict=True)
    return torch.cat([_attend_row(*row, scale=scale, window=window) for row in rows])


def triton_varlen(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """All rows in one launch of a Triton kernel, imported here since a CPU installation may lack Triton."""
    from worker.kernels.varlen_attention import attend

    return attend(q_THD, k_TKD, v_TKD, starts, scale=scale, window=window)


def torch_varlen(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """PyTorch's `varlen_attn` (2.11 and later): one launch, in 16 bits, on a GPU from Ampere up."""
    from torch.nn.attention.varlen import varlen_attn

    if k_TKD.shape[1] != q_THD.shape[1]:
        # `varlen_attn` of PyTorch 2.11 does not support grouped heads.
        heads_per_key = q_THD.shape[1] // k_TKD.shape[1]
        k_TKD, v_TKD = (heads.repeat_interleave(heads_per_key, dim=1) for heads in (k_TKD, v_TKD))
    left = -1 if window is None else window - 1
    o_THD = varlen_attn(
        q_THD, k_TKD, v_TKD, starts, starts, longest, longest, scale=scale, window_size=(left, 0)
    )
    assert isinstance(o_THD, torch.Tensor)  # not a tuple, as no other output is asked for
    return o_THD


def _attend_row(
    q_LHD: torch.Tensor, k_LKD: torch.Tensor, v_LKD: torch.Tensor, *, scale: float, window: int | None
) -> torch.Tensor:
    q_HLD, k_KLD, v_KLD = (heads.transpose(0, 1)[None] for heads in (q_LHD, k_LKD, v_LKD))
    mask_LL = None
    if window is not None and window < len(q_LHD):
        places_L = torch.arange(len(q_LHD), device=q_LHD.device)
        back_LL = places_L[:, None] - places_L
        mask_LL = (back_LL >= 0) & (back_LL < window)
    o_HLD = functional.scaled_dot_product_attention(
        q_HLD,
        k_KLD,
        v_KLD,
        attn_mask=mask_LL,
        is_causal=mask_LL is None,
        scale=scale,
        enable_gqa=q_HLD.shape[1] != k_KLD.shape[1],
    )
    return o_HLD[0].transpose(0, 1)
