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
        heads = (_with_whole_heads(q_THD), _with_whole_heads(k_TKD), _with_whole_heads(v_TKD))
        rows = _Rows(heads, _make_tiles(starts, len(q_THD)), scale, window)
        o_THD, logs_HT = _compute_output(rows)
        ctx.save_for_backward(*heads, rows.tiles, o_THD, logs_HT)
        ctx.scale, ctx.window = scale, window
        return o_THD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, tiles, o_THD, logs_HT = ctx.saved_tensors
        rows = _Rows((q_THD, k_TKD, v_TKD), tiles, ctx.scale, ctx.window)
        grad_THD = _with_whole_heads(grad_THD)
        grad_q_THD, means_HT = _compute_query_gradient(rows, grad_THD, logs_HT, o_THD)
        grad_k_TKD, grad_v_TKD = _compute_key_gradients(rows, grad_THD, logs_HT, means_HT)
        return grad_q_THD, grad_k_TKD, grad_v_TKD, None, None, None


def compilations(
    heads: int, key_heads: int, width: int, *, window: int | None, dtype: torch.dtype, device: torch.device
) -> list[Callable[[], Any]]:
    """Calls that each compile a kernel of `attend` or of its gradient for heads of this kind, by using it.

    Each may be called in a thread of its own. What is compiled is found by `attend`, and on disk by later
    processes.
    """

    def draw() -> tuple[_Rows, torch.Tensor, torch.Tensor]:
        """One token's heads, its queries, and a number for each head."""
        q_THD, k_TKD = (
            torch.zeros(1, count, width, dtype=dtype, device=device) for count in (heads, key_heads)
        )
        tiles = _make_tiles(torch.tensor([0, 1], dtype=torch.int32, device=device), 1)
        # With a scale of 1.0 some versions of Triton compile another kernel.
        rows = _Rows((q_THD, k_TKD, k_TKD), tiles, width**-0.5, window or 0)
        return rows, q_THD, torch.zeros(heads, 1, device=device)

    def compute_output() -> None:
        rows, _q_THD, _logs_HT = draw()
        _compute_output(rows)

    def compute_query_gradient() -> None:
        rows, q_THD, logs_HT = draw()
        _compute_query_gradient(rows, q_THD, logs_HT, q_THD)

    def compute_key_gradients() -> None:
        rows, q_THD, logs_HT = draw()
        _compute_key_gradients(rows, q_THD, logs_HT, logs_HT)

    return [compute_output, compute_query_gradient, compute_key_gradients]


@dataclass(frozen=True)
class _Rows:
    """What all kernels read. `heads`: q [T, H, D], k and v [T, K, D], each head without gaps; `tiles`: the
    table of tiles; `window`: 0 for none."""

    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    tiles: torch.Tensor
    scale: float
    window: int


def _compute_output(rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """The output [T, H, D], and the logarithms of the sums of each query's weights, [H, T]."""
    q_THD = rows.heads[0]
    tokens, heads, _ = q_THD.shape
    o_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    logs_HT = torch.empty(heads, tokens, dtype=torch.float32, device=q_THD.device)
    forward_kernel[(heads, len(rows.tiles))](
        *rows.heads,
        o_THD,
        logs_HT,
        rows.tiles,
        rows.scale * _LOG2_E,
        tokens,
        *_strides(*rows.heads),
        **_constants(rows, _FORWARD),
    )
    return o_THD, logs_HT


def _compute_query_gradient(
    rows: _Rows, grad_THD: torch.Tensor, logs_HT: torch.Tensor, o_THD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of q, and the sums over D of output times gradient, [H, T]."""
    grad_q_THD, means_HT = torch.empty_like(o_THD), torch.empty_like(logs_HT)
    grad_queries_kernel[(rows.heads[0].shape[1], len(rows.tiles))](
        *rows.heads,
        o_THD,
        grad_THD,
        logs_HT,
        means_HT,
        grad_q_THD,
        *_gradient_arguments(rows, grad_THD),
        **_constants(rows, _QUERIES),
    )
    return grad_q_THD, means_HT


def _compute_key_gradients(
    rows: _Rows, grad_THD: torch.Tensor, logs_HT: torch.Tensor, means_HT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of k and v. `means_HT` comes from `_compute_query_gradient`."""
    k_TKD = rows.heads[1]
    grad_k_TKD, grad_v_TKD = (torch.empty_like(k_TKD, memory_format=torch.contiguous_format) for _ in "kv")
    grad_keys_kernel[(k_TKD.shape[1], len(rows.tiles))](
        *rows.heads,
        grad_THD,
        logs_HT,
        means_HT,
        grad_k_TKD,
        grad_v_TKD,
        *_gradient_arguments(rows, grad_THD),
        **_constants(rows, _KEYS),
    )
    return grad_k_TKD, grad_v_TKD


def _gradient_arguments(rows: _Rows, grad_THD: torch.Tensor) -> tuple[Any, ...]:
    settings = (rows.tiles, rows.scale, rows.scale * _LOG2_E, len(rows.heads[0]))
    return *settings, *_strides(*rows.heads, grad_THD)


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


def _constants(rows: _Rows, config: _KernelConfig) -> dict[str, Any]:
    q_THD, k_TKD, _v_TKD = rows.heads
    _, heads, dimension = q_THD.shape
    return {
        "HEADS": heads,
        "GROUP": heads // k_TKD.shape[1],
        "DIMENSION": dimension,
        "DIMENSION_BLOCK": max(16, triton.next_power_of_2(dimension)),
        "WINDOW": rows.window,
        "OWN": _OWN,
        "OTHERS": config.others,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
