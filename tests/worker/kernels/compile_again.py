"""Counts the kernels that are compiled by launches for which earlier ones should have compiled them.

    python -m tests.worker.kernels.compile_again 90      compute capability 9.0

The first number is of a kernel that is new. The others: attention in explicit layers after it was compiled
ahead, without and with a window; and scores of other numbers of tokens.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

from tests.worker.kernels.compile_all import AbsentGpu, compile_only
from worker.kernels import token_scores, varlen_attention

HEADS, KEY_HEADS, WIDTH, PADDING = 8, 2, 128, 64


def find_compiled() -> list[str]:
    return [path.stem for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")]


def print_compiled(launch: Callable[[], Any]) -> None:
    before = len(find_compiled())
    launch()
    print(len(find_compiled()) - before)


def attend(window: int | None) -> None:
    """As in explicit layers: q, k and v side by side, and padding behind them."""
    tokens, widths = 300, [HEADS * WIDTH, KEY_HEADS * WIDTH, KEY_HEADS * WIDTH, PADDING]
    qkv_TO = torch.zeros(tokens, sum(widths), dtype=torch.bfloat16, requires_grad=True)
    heads = [part.view(tokens, -1, WIDTH) for part in qkv_TO.split(widths, dim=1)[:3]]
    starts = torch.tensor([0, 100, tokens], dtype=torch.int32)
    varlen_attention.attend(*heads, starts, scale=0.1, window=window).sum().backward()


def score(first: int, count: int) -> None:
    logits_NV = torch.zeros(count, 256, dtype=torch.bfloat16)
    targets_N = torch.zeros(first + count, dtype=torch.long)[first:]
    token_scores.score(logits_NV, targets_N, scale=1.0, softcap=None)


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentGpu(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_only
    print_compiled(lambda: score(0, 8))
    for window in (None, 64):
        for call in varlen_attention.compilations(
            HEADS, KEY_HEADS, WIDTH, window=window, dtype=torch.bfloat16, device=torch.device("cpu")
        ):
            call()
        print_compiled(lambda window=window: attend(window))  # type: ignore[misc]
    for first, count in ((0, 7), (1, 8), (1, 3)):
        print_compiled(lambda first=first, count=count: score(first, count))  # type: ignore[misc]
