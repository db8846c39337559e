"""Causal varlen attention, within rows that are concatenated without padding, as an autograd function.

The kernels are those of varlen_attention_tiles.py.

T: tokens of all rows. H: query heads. K: key heads. D: width of a head. N: rows.
"""

from collections.abc import Callable
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

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q [T, H, D], k and v [T, K, D]


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
        tiles = _make_tiles(starts, len(q_THD))
        o_THD, logs_HT = _compute_output((q_THD, k_TKD, v_TKD), tiles, scale, window)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, o_THD, logs_HT, tiles)
        ctx.scale, ctx.window = scale, window
        return o_THD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, o_THD, logs_HT, tiles = ctx.saved_tensors
        grad_THD = _with_whole_heads(grad_THD)
        shared = ((q_THD, k_TKD, v_TKD), grad_THD, logs_HT, tiles, ctx.scale, ctx.window)
        grad_q_THD, means_HT = _compute_query_gradient(o_THD, *shared)
        grad_k_TKD, grad_v_TKD = _compute_key_gradients(means_HT, *shared)
        return grad_q_THD, grad_k_TKD, grad_v_TKD, None, None, None


def compilations(
    heads: int, key_heads: int, width: int, *, window: int | None, dtype: torch.dtype, device: torch.device
) -> list[Callable[[], Any]]:
    """Calls that each compile a kernel of `attend` or of its gradient for heads of this kind, by using it.

    Each may be called in a thread of its own. What is compiled is found by `attend`, and on disk by later
    processes.
    """

    scale = width**-0.5  # not 1.0, for which some versions of Triton compile another kernel

    def draw() -> tuple[Heads, torch.Tensor, torch.Tensor]:
        k_TKD, v_TKD = (torch.zeros(1, key_heads, width, dtype=dtype, device=device) for _ in "kv")
        q_THD = torch.zeros(1, heads, width, dtype=dtype, device=device)
        return (
            (q_THD, k_TKD, v_TKD),
            torch.zeros(heads, 1, device=device),
            _make_tiles(torch.tensor([0, 1], dtype=torch.int32, device=device), 1),
        )

    def output() -> None:
        qkv, _logs_HT, tiles = draw()
        _compute_output(qkv, tiles, scale, window or 0)

    def query_gradient() -> None:
        qkv, logs_HT, tiles = draw()
        _compute_query_gradient(qkv[0], qkv, qkv[0], logs_HT, tiles, scale, window or 0)

    def key_gradients() -> None:
        qkv, logs_HT, tiles = draw()
        _compute_key_gradients(logs_HT, qkv, qkv[0], logs_HT, tiles, scale, window or 0)

    return [output, query_gradient, key_gradients]


def _compute_output(
    qkv: Heads, tiles: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output [T, H, D], and the logarithms of the sums of each query's weights, [H, T]."""
    q_THD, k_TKD, _v_TKD = qkv
    tokens, heads, _ = q_THD.shape
    o_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    logs_HT = torch.empty(heads, tokens, dtype=torch.float32, device=q_THD.device)
    forward_kernel[(heads, len(tiles))](
        *qkv,
        o_THD,
        logs_HT,
        tiles,
        scale * _LOG2_E,
        tokens,
        *_strides(*qkv),
        **_constants(q_THD, k_TKD, window, _FORWARD),
    )
    return o_THD, logs_HT


def _compute_query_gradient(
    o_THD: torch.Tensor,
    qkv: Heads,
    grad_THD: torch.Tensor,
    logs_HT: torch.Tensor,
    tiles: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of q, and the sums over D of output times gradient, [H, T]."""
    q_THD, k_TKD, _v_TKD = qkv
    grad_q_THD, means_HT = torch.empty_like(o_THD), torch.empty_like(logs_HT)
    grad_queries_kernel[(q_THD.shape[1], len(tiles))](
        *qkv,
        o_THD,
        grad_THD,
        logs_HT,
        means_HT,
        grad_q_THD,
        *(tiles, scale, scale * _LOG2_E, len(q_THD)),
        *(*_strides(*qkv), *grad_THD.stride()[:2]),
        **_constants(q_THD, k_TKD, window, _QUERIES),
    )
    return grad_q_THD, means_HT


def _compute_key_gradients(
    means_HT: torch.Tensor,
    qkv: Heads,
    grad_THD: torch.Tensor,
    logs_HT: torch.Tensor,
    tiles: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of k and v."""
    q_THD, k_TKD, _v_TKD = qkv
    grad_k_TKD, grad_v_TKD = (torch.empty_like(k_TKD, memory_format=torch.contiguous_format) for _ in "kv")
    grad_keys_kernel[(k_TKD.shape[1], len(tiles))](
        *qkv,
        grad_THD,
        logs_HT,
        means_HT,
        grad_k_TKD,
        grad_v_TKD,
        *(tiles, scale, scale * _LOG2_E, len(q_THD)),
        *(*_strides(*qkv), *grad_THD.stride()[:2]),
        **_constants(q_THD, k_TKD, window, _KEYS),
    )
    return grad_k_TKD, grad_v_TKD


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
