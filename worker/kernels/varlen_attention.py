"""Causal varlen attention, within rows that are concatenated without padding, as an autograd function.

The kernels are those of varlen_attention_tiles.py.

T: tokens of all rows. H: query heads. K: key heads. D: width of a head. N: rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from worker.kernels.varlen_attention_tiles import (
    forward_kernel,
    grad_keys_kernel,
    grad_queries_kernel,
    tile_kernel,
)

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class _KernelConfig:
    """How a kernel is launched. `others`: keys (or queries) that a program reads at a time."""

    others: int
    warps: int
    stages: int


# Tokens of a tile, which one program computes.
_OWN = 64
# Measured on an H100 with heads of 128.
_FORWARD = _KernelConfig(64, 4, 3)
_QUERIES = _KernelConfig(64, 4, 2)
_KEYS = _KernelConfig(32, 4, 4)
_ROWS_AT_ONCE = 128


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    starts: torch.Tensor,  # int32 [N + 1]: where rows begin, and where the last one ends
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """The output [T, H, D]. `window`: tokens that a query attends to, its own included; None: all before."""
    o_THD: torch.Tensor = _Attend.apply(q_THD, k_TKD, v_TKD, starts, scale, window or 0)
    return o_THD


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        starts: torch.Tensor,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        q_THD, k_TKD, v_TKD = (_with_whole_heads(heads) for heads in (q_THD, k_TKD, v_TKD))
        tokens, heads, _ = q_THD.shape
        o_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        logs_HT = torch.empty(heads, tokens, dtype=torch.float32, device=q_THD.device)
        tiles = _make_tiles(starts, tokens)
        forward_kernel[(heads, len(tiles))](
            q_THD,
            k_TKD,
            v_TKD,
            o_THD,
            logs_HT,
            tiles,
            scale * _LOG2_E,
            tokens,
            *_strides(q_THD, k_TKD, v_TKD),
            **_constants(q_THD, k_TKD, window, _FORWARD),
        )
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, o_THD, logs_HT, tiles)
        ctx.scale, ctx.window = scale, window
        return o_THD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, o_THD, logs_HT, tiles = ctx.saved_tensors
        grad_THD = _with_whole_heads(grad_THD)
        tokens, heads, _ = q_THD.shape
        grad_q_THD = torch.empty_like(o_THD)
        grad_k_TKD, grad_v_TKD = (
            torch.empty_like(k_TKD, memory_format=torch.contiguous_format) for _ in "kv"
        )
        means_HT = torch.empty_like(logs_HT)
        shared = (tiles, ctx.scale, ctx.scale * _LOG2_E, tokens)
        strides = (*_strides(q_THD, k_TKD, v_TKD), *grad_THD.stride()[:2])
        grad_queries_kernel[(heads, len(tiles))](
            q_THD,
            k_TKD,
            v_TKD,
            o_THD,
            grad_THD,
            logs_HT,
            means_HT,
            grad_q_THD,
            *shared,
            *strides,
            **_constants(q_THD, k_TKD, ctx.window, _QUERIES),
        )
        grad_keys_kernel[(k_TKD.shape[1], len(tiles))](
            q_THD,
            k_TKD,
            v_TKD,
            grad_THD,
            logs_HT,
            means_HT,
            grad_k_TKD,
            grad_v_TKD,
            *shared,
            *strides,
            **_constants(q_THD, k_TKD, ctx.window, _KEYS),
        )
        return grad_q_THD, grad_k_TKD, grad_v_TKD, None, None, None


def _with_whole_heads(heads: torch.Tensor) -> torch.Tensor:
    return heads if heads.stride(-1) == 1 else heads.contiguous()


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _make_tiles(starts: torch.Tensor, tokens: int) -> torch.Tensor:
    """The table of tiles: where the tile's row begins, the row's length, and the tile's first place in it.

    Every row may end in a tile that is not full, so the table may have entries left over, with a length of 0.
    """
    rows = len(starts) - 1
    tiles = torch.empty(tokens // _OWN + rows, 3, dtype=torch.int32, device=starts.device)
    tile_kernel[(rows,)](starts, tiles, rows, len(tiles), OWN=_OWN, BLOCK=_ROWS_AT_ONCE)
    return tiles


def _constants(
    q_THD: torch.Tensor, k_TKD: torch.Tensor, window: int, config: _KernelConfig
) -> dict[str, Any]:
    dimension = q_THD.shape[2]
    return {
        "HEADS": q_THD.shape[1],
        "GROUP": q_THD.shape[1] // k_TKD.shape[1],
        "DIMENSION": dimension,
        "DIMENSION_BLOCK": max(16, triton.next_power_of_2(dimension)),
        "WINDOW": window,
        "OWN": _OWN,
        "OTHERS": config.others,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
